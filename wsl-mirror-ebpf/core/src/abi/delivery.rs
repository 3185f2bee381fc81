//! Delivery by `lo`: what listeners, ports and rules say about it.

/// Value of `SOCKET_DELIVERY` (socket storage), of a listener: how its flows are delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SocketDelivery {
    /// 1: by `lo`. A rule that drops what is "not on lo" was seen to eat SYNs to this listener.
    pub by_lo: u32,
}

/// Value of `PORT_DELIVERY` (array with an element for each port, as in `PORT_PACKETS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortDelivery {
    /// 1: flows to a listener on this port were delivered by `lo`, so the program checks each packet to the port.
    /// The program writes it and never clears it.
    pub seen: u32,
    /// A [`PortRule`], written by the loader and the agent.
    pub rule: u32,
}

/// What the rules say of a port, before conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum PortRule {
    /// One drops whatever does not come in on `lo`, from whichever interface: it is for what comes from outside, and
    /// new flows are delivered by `lo`.
    NotOnLo = 1,
    /// One drops what comes in on the interface that we are on, and not what comes in elsewhere: somebody has closed the
    /// port to Windows, and it stays closed. Nothing is delivered by `lo`.
    Closed = 2,
}

impl PortRule {
    /// The rule that this number stands for; 0 and unknown numbers are none.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::NotOnLo),
            2 => Some(Self::Closed),
            _ => None,
        }
    }

    /// `not_on_lo` or `closed`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotOnLo => "not_on_lo",
            Self::Closed => "closed",
        }
    }
}
