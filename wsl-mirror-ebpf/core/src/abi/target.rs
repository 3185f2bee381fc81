//! Targets: where a listener's flows lead.

/// Value of `SOCKET_TARGET` (socket storage): the container behind a listener.
///
/// `load` and `run` write it onto the listener, so it dies with the socket. The program writes `unanswered_at` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Target {
    /// When a direct flow to this target was last found unanswered, in ns of `CLOCK_MONOTONIC`; 0: never.
    pub unanswered_at: u64,
    /// The container's address, in the order in which one writes it.
    pub address: [u8; 4],
    /// The address from which this machine reaches the container, in the same order. The container sees it as its client.
    pub source: [u8; 4],
    /// Index of the interface by which this machine reaches the container.
    pub ifindex: u32,
    /// The container's port, host order.
    pub port: u16,
    /// A [`Service`].
    pub service: u8,
    /// [`Self::DROPPED`] and [`Self::CLOSED_TO_LINUX`], added up.
    pub flags: u8,
}

impl Target {
    /// No container.
    pub const NONE: Self =
        Self { unanswered_at: 0, address: [0; 4], source: [0; 4], ifindex: 0, port: 0, service: 0, flags: 0 };
    /// Of `flags`: a rule of the raw table drops Windows' packets before the engine's DNAT.
    pub const DROPPED: u8 = 1;
    /// Of `flags`: a firewall rule of the user's closes the port to Linux' own clients, or would drop what a translated one
    /// sends.
    pub const CLOSED_TO_LINUX: u8 = 2;
    /// How long direct flows to a target are avoided after one was found unanswered, in ns.
    pub const AVOIDED_NS: u64 = 60_000_000_000;

    /// Who holds the listener.
    #[inline(always)]
    pub const fn service(&self) -> Service {
        match self.service {
            1 => Service::Proxy,
            _ => Service::Holder,
        }
    }

    /// Whether the engine's own rules bring Windows' packets to the container.
    #[inline(always)]
    pub const fn engine_way(&self) -> EngineWay {
        if self.flags & Self::DROPPED != 0 { EngineWay::Dropped } else { EngineWay::Open }
    }

    /// Whether Linux' own clients may be connected to the container.
    #[inline(always)]
    pub const fn is_open_to_linux(&self) -> bool {
        self.flags & Self::CLOSED_TO_LINUX == 0
    }

    /// Whether a direct flow was found unanswered within [`Target::AVOIDED_NS`] before `now`.
    #[inline(always)]
    pub const fn is_avoided(&self, now: u64) -> bool {
        self.unanswered_at != 0 && now.wrapping_sub(self.unanswered_at) < Self::AVOIDED_NS
    }
}

/// Who holds a listener that has a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Service {
    /// A process that never accepts: dockerd without its proxy, conmon.
    Holder = 0,
    /// A proxy that accepts: docker-proxy.
    Proxy = 1,
}

/// What the engine's own rules do to Windows' packets for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EngineWay {
    /// They reach the engine's DNAT.
    Open = 0,
    /// A rule of the raw table drops them first (Docker 28.0 and later, ports published on 127.0.0.1).
    Dropped = 1,
}

/// Key of `DIRECT_FLOWS` (LRU hash): a direct TCP flow from 127.0.0.1 to 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct DirectFlowKey {
    /// The client's port, host order.
    pub client_port: u16,
    /// The published port, host order.
    pub server_port: u16,
}

/// Value of `DIRECT_FLOWS`: the translation of a direct flow, for the day when conntrack has lost its entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DirectFlow {
    /// The container's address, in the order in which one writes it.
    pub address: [u8; 4],
    /// The address that the container sees as its client.
    pub source: [u8; 4],
    /// The container's port, host order.
    pub port: u16,
    /// The port that the container sees as its client's, host order. 0: the kernel chooses one.
    pub source_port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_number_means_the_cautious_choice() {
        assert_eq!(Target { service: 7, ..Target::default() }.service(), Service::Holder);
    }

    #[test]
    fn each_flag_has_its_own_meaning() {
        for (flags, way, is_open) in [
            (0, EngineWay::Open, true),
            (Target::DROPPED, EngineWay::Dropped, true),
            (Target::CLOSED_TO_LINUX, EngineWay::Open, false),
            (Target::DROPPED | Target::CLOSED_TO_LINUX, EngineWay::Dropped, false),
        ] {
            let target = Target { flags, ..Target::default() };
            assert_eq!((target.engine_way(), target.is_open_to_linux()), (way, is_open), "{flags}");
        }
    }

    #[test]
    fn a_target_is_avoided_for_a_minute() {
        let mut target = Target::default();
        assert!(!target.is_avoided(5));
        target.unanswered_at = 100;
        assert!(target.is_avoided(100) && target.is_avoided(100 + Target::AVOIDED_NS - 1));
        assert!(!target.is_avoided(100 + Target::AVOIDED_NS));
    }
}
