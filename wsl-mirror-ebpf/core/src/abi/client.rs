//! Linux' own clients: what their connects and datagrams got, and what their sockets remember of it.

/// Defines [`ClientOutcome`] and [`ClientCounts`] from one list: each outcome has a counter, a name and a sentence.
macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:ident;)+) => {
        /// What a connect or a datagram of a Linux client to a port of this machine got.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum ClientOutcome {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl ClientOutcome {
            /// All, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The counter's name: what `bpftool map dump` shows.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($name),)+ }
            }

            /// One sentence for people.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }

        /// Value of `CLIENTS` (per-CPU array, one element): connects and unconnected datagrams of Linux clients by outcome.
        ///
        /// Only those to an address of this machine count.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct ClientCounts {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl ClientCounts {
            /// The counter of this outcome.
            pub const fn get(&self, outcome: ClientOutcome) -> u64 {
                match outcome { $(ClientOutcome::$variant => self.$name,)+ }
            }
        }
    };
}

outcomes! {
    /// translated: the socket talks straight to the container
    Translated => translated;
    /// kept on lo: the connection does not travel to Windows and back
    KeptOnLo => kept_on_lo;
    /// `linux_clients` is off
    SwitchedOff => switched_off;
    /// nobody listens on the port
    NoListener => no_listener;
    /// the container behind the port is not known, or there is none
    NoTarget => no_target;
    /// the port is exempt
    Exempt => exempt;
    /// the port's policy is steer
    PolicySteer => policy_steer;
    /// the path of the port is proxy
    PathProxy => path_proxy;
    /// a firewall rule closes the port to Linux clients, or would drop a translated connection
    Closed => closed;
    /// the client is bound to 127.0.0.0/8 or to a device, or has a mark of its own
    ClientBound => client_bound;
    /// the socket has no room for the translation, or already reaches the container by another port
    NotRemembered => not_remembered;
}

/// An IPv4 address and a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct Endpoint {
    /// The address, in the order in which one writes it.
    pub address: [u8; 4],
    /// The port, host order.
    pub port: u16,
    /// Always 0.
    pub zero: u16,
}

impl Endpoint {
    /// No endpoint.
    pub const NONE: Self = Self::new([0; 4], 0);

    /// This address and port.
    #[inline(always)]
    pub const fn new(address: [u8; 4], port: u16) -> Self {
        Self { address, port, zero: 0 }
    }

    /// Whether both are the same endpoint: one comparison, where the derived one compares byte by byte.
    #[inline(always)]
    pub const fn is(self, other: Self) -> bool {
        self.word() == other.word()
    }

    #[inline(always)]
    const fn word(self) -> u64 {
        // SAFETY: no padding, as aligned, and every bit pattern is a value.
        unsafe { core::mem::transmute::<Self, u64>(self) }
    }
}

/// A destination, and the container that took its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Translation {
    /// What the program named.
    pub named: Endpoint,
    /// Where the kernel sends instead.
    pub container: Endpoint,
}

/// How many translations a socket remembers. A TCP socket needs one; a UDP socket may talk to several containers.
pub const TRANSLATIONS: usize = 8;

/// Value of `SOCKET_TRANSLATIONS` (socket storage): the translations of a client's socket.
///
/// recvmsg(2) and getpeername(2) show the program what it named. A free place's container is [`Endpoint::NONE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Translations {
    /// In no order.
    pub entries: [Translation; TRANSLATIONS],
}

/// How many LAN addresses of this machine may have translated clients.
pub const ADDRESSES: usize = 8;

/// Value of `LOCAL_ADDRESSES` (array, one element): this machine's addresses outside of 127.0.0.0/8 whose clients are
/// translated.
///
/// An array, since every connect of the machine looks here: a hash map takes 17 ns for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LocalAddresses {
    /// Until when they count, in ns of `CLOCK_MONOTONIC`. Once no agent renews this, an address may become another machine's.
    pub until: u64,
    /// In the order in which one writes them; 0.0.0.0 is none.
    pub addresses: [[u8; 4]; ADDRESSES],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_own_counter_in_their_order() {
        for (index, outcome) in ClientOutcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index, "{}", outcome.name());
        }
        assert_eq!(size_of::<ClientCounts>(), ClientOutcome::ALL.len() * 8);
    }

    #[test]
    fn endpoints_are_the_same_if_address_and_port_are() {
        let one = Endpoint::new([127, 0, 0, 1], 8080);
        assert!(one.is(Endpoint::new([127, 0, 0, 1], 8080)));
        assert!(!one.is(Endpoint::new([127, 0, 0, 2], 8080)) && !one.is(Endpoint::new([127, 0, 0, 1], 8081)));
    }
}
