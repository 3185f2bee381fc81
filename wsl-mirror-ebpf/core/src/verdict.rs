//! The verdict: one pure function, compiled into the program and into the host's tests.

use crate::abi::{Carrier, FlowState, Policy, Reason};
use crate::packet::{Packet, Role};

/// `IPS_*` bits of `nf_conn.status` (`include/uapi/linux/netfilter/nf_conntrack_common.h`).
pub mod status {
    /// A reply has been seen.
    pub const SEEN_REPLY: u64 = 1 << 1;
    /// The source is translated.
    pub const SRC_NAT: u64 = 1 << 4;
    /// The destination is translated.
    pub const DST_NAT: u64 = 1 << 5;
    /// It was decided whether the source is translated, one way or the other.
    pub const SRC_NAT_DONE: u64 = 1 << 7;
    /// It was decided whether the destination is translated, one way or the other.
    pub const DST_NAT_DONE: u64 = 1 << 8;
}

/// `enum tcp_conntrack` values (`nf_conntrack_tcp.h`).
pub mod tcp_state {
    /// Just made: conntrack has seen no packet of the flow.
    pub const NONE: u8 = 0;
    /// Finished, waiting for stragglers. A new SYN restarts it.
    pub const TIME_WAIT: u8 = 7;
    /// Reset, or the last ACK was seen. Likewise.
    pub const CLOSE: u8 = 8;
}

/// What conntrack knows about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The packet goes the way of the flow's replies: the other side opened it.
    pub is_reply: bool,
    /// `IPS_*` bits.
    pub status: u64,
    /// `enum tcp_conntrack`; meaningless for UDP.
    pub tcp_state: u8,
    /// The destination is translated to an address of 127.0.0.0/8: to a program on this machine, not to a
    /// container.
    pub is_to_loopback: bool,
}

/// An answer of conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conntrack {
    /// There is no entry.
    Missing,
    /// There is one.
    Found(Entry),
    /// The lookup itself failed.
    Failed,
}

/// The socket that would receive a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// What is written about its owner.
    pub owner: Policy,
    /// Its flows are delivered by `lo`, since a rule was seen to eat the others.
    pub by_lo: bool,
}

/// What is remembered of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Who carries it; `None` if nothing is remembered.
    pub carrier: Option<Carrier>,
    /// It is delivered by `lo`.
    pub by_lo: bool,
    /// The sequence number of its first SYN, of one within Linux.
    pub sequence: u32,
}

impl Remembered {
    /// Nothing. Whole in all its fields, since the program must not look at what was never written, not even in vain.
    pub const NOTHING: Self = Self { carrier: None, by_lo: false, sequence: 0 };
}

/// Which ways there are to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Only the plain one: delivering by `lo` would lose packets on this machine, as it is now.
    Plain,
    /// Both, and nothing was delivered by `lo` to this port so far.
    Open,
    /// Both, and flows to a listener on this port were delivered by `lo`.
    Seen,
    /// By `lo`: a rule is known that drops everything else.
    ByLo,
}

impl Way {
    /// Whether a flow to this listener that begins is delivered by `lo`.
    #[inline(always)]
    const fn goes_by_lo(self, listener: Listener) -> bool {
        match self {
            Self::Plain => false,
            Self::Open | Self::Seen => listener.by_lo,
            Self::ByLo => true,
        }
    }

    /// Whether a flow that goes on is delivered by `lo`: as before; but what went the plain way before a rule was known
    /// that drops it there does not stay on it.
    #[inline(always)]
    const fn goes_on_by_lo(self, flow: Remembered) -> bool {
        match self {
            Self::Plain => false,
            Self::Open | Self::Seen => flow.by_lo,
            Self::ByLo => flow.by_lo || matches!(flow.carrier, Some(Carrier::Listener | Carrier::Linux)),
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why.
    pub reason: Reason,
    /// Whether it is delivered by `lo`.
    pub by_lo: bool,
}

impl Decision {
    /// The kernel goes on with it as with any other.
    #[must_use]
    pub const fn plain(reason: Reason) -> Self {
        Self { reason, by_lo: false }
    }
}

/// What the program asks of the kernel and does to it. Each call may fail; none may hold anything on return.
#[expect(clippy::result_unit_err, reason = "of a call that failed, the verdict needs to know only that")]
pub trait Kernel {
    /// Finds the packet's conntrack entry.
    fn conntrack(&mut self, packet: &Packet) -> Conntrack;
    /// What we remember of the packet's flow.
    fn remembered(&mut self, packet: &Packet) -> Remembered;
    /// What the user wrote about the packet's destination port.
    fn written_policy(&mut self, packet: &Packet) -> Policy;
    /// What ports get that nobody wrote about, served by whom nobody wrote about.
    fn default_policy(&mut self) -> Policy;
    /// The socket that would receive a flow that this packet begins: for TCP one in LISTEN, for UDP a bound one.
    fn listener(&mut self, packet: &Packet) -> Option<Listener>;
    /// Whether a TCP socket with exactly this packet's addresses and ports exists.
    fn has_connection(&mut self, packet: &Packet) -> bool;
    /// Which ways there are to the packet's destination port.
    fn way(&mut self, packet: &Packet) -> Way;
    /// Takes away the packet's conntrack entry if it still is of no use ([`Entry::replaceable`]).
    fn expire(&mut self, packet: &Packet) -> Result<(), ()>;
    /// Makes a conntrack entry for the flow whose destination NAT is already done, to where it goes anyway.
    fn create(&mut self, packet: &Packet) -> Result<(), Reason>;
    /// Remembers the packet's flow; of one that is delivered by `lo` also that the port has seen such a one.
    fn remember(&mut self, packet: &Packet, flow: FlowState) -> Result<(), ()>;
    /// Has the packet's listener remember that its flows are to be delivered by `lo`.
    fn learn(&mut self, packet: &Packet);
    /// Forgets the flow.
    fn forget(&mut self, packet: &Packet);
    /// The same number. The program makes of it one of which the kernel's verifier does not know the value: else it
    /// looks at all that follows once for each value that there can be.
    fn same(&self, number: u64) -> u64 {
        number
    }
}

/// Decides about a packet, and makes its flow's conntrack entry if it is to be steered.
///
/// In three steps, each of which the program has once: what does the packet ask for; is it admitted; do it. Were the
/// second and the third in every branch of the first, the kernel's verifier would have to look at each copy, on every
/// way to it.
#[inline(always)]
pub fn decide<K: Kernel>(packet: &Packet, kernel: &mut K) -> Decision {
    let asked = match kernel.conntrack(packet) {
        Conntrack::Failed => Err(Decision::plain(Reason::LookupFailed)),
        Conntrack::Missing => without_entry(packet, kernel),
        Conntrack::Found(entry) => with_entry(packet, entry, kernel),
    };
    let wish = match asked {
        Ok(wish) => Wish(kernel.same(wish.0)),
        Err(decision) => return decision,
    };
    let by_lo = if wish.has(Wish::GRANTED) {
        wish.has(Wish::BY_LO)
    } else {
        match admit(packet, kernel) {
            Ok(listener) if wish.has(Wish::GOES_ON) => wish.has(Wish::BY_LO) || listener.by_lo,
            Ok(listener) => wish.has(Wish::BY_LO) || kernel.way(packet).goes_by_lo(listener),
            Err(reason) => return wish.refused(packet, reason, kernel),
        }
    };
    if wish.has(Wish::GOES_ON) {
        return go_on(packet, wish, by_lo, kernel);
    }
    if wish.has(Wish::REPLACES) && kernel.expire(packet).is_err() {
        return Decision::plain(Reason::ExpireFailed);
    }
    match kernel.create(packet) {
        Err(failed) => Decision::plain(failed),
        Ok(()) => match kernel.remember(packet, FlowState::new(Carrier::Listener, by_lo)) {
            Ok(()) => Decision { reason: wish.reason(), by_lo },
            Err(()) => Decision { reason: Reason::Unremembered, by_lo },
        },
    }
}

/// What a packet asks for that is not decided by its conntrack entry alone. Bits: so that the program can pass it on as
/// one number ([`Kernel::same`]).
#[derive(Clone, Copy)]
struct Wish(u64);

impl Wish {
    /// What it comes to if it is granted: the number of a reason.
    const REASON: u64 = 0xff;
    /// It is granted already, and [`Wish::BY_LO`] says which way.
    const GRANTED: u64 = 1 << 8;
    /// It goes by `lo`, whatever its listener says.
    const BY_LO: u64 = 1 << 9;
    /// An entry that is of no use has to be taken away first.
    const REPLACES: u64 = 1 << 10;
    /// A flow goes on with its entry; only the way is in question.
    const GOES_ON: u64 = 1 << 11;
    /// Of one that goes on: the SYN that a rule may have eaten comes once more.
    const LOST: u64 = 1 << 12;

    const fn new(reason: Reason, bits: u64) -> Self {
        Self(reason as u64 | bits)
    }

    /// One that is granted already.
    #[inline(always)]
    const fn granted(reason: Reason, by_lo: bool, bits: u64) -> Self {
        Self::new(reason, bits | Self::GRANTED | if by_lo { Self::BY_LO } else { 0 })
    }

    #[inline(always)]
    const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    #[inline(always)]
    const fn reason(self) -> Reason {
        match Reason::from_number((self.0 & Self::REASON) as u32) {
            Some(reason) => reason,
            // No wish is made without one.
            None => Reason::NotOurs,
        }
    }

    /// Its port is not to be steered.
    #[inline(always)]
    fn refused<K: Kernel>(self, packet: &Packet, reason: Reason, kernel: &mut K) -> Decision {
        let may_begin = matches!(packet.role, Role::Syn | Role::Datagram);
        if may_begin && !matches!(self.reason(), Reason::Established) {
            // What we remember of an earlier flow on the same addresses is not true of this one.
            kernel.forget(packet);
        }
        Decision::plain(if self.has(Self::GOES_ON) { self.reason() } else { reason })
    }
}

#[inline(always)]
fn without_entry<K: Kernel>(packet: &Packet, kernel: &mut K) -> Result<Wish, Decision> {
    match packet.role {
        // Should the engine no longer carry it, the next datagram finds it caught, and heals it; unless a rule drops it
        // before anybody can catch it.
        Role::Datagram if is_engines(packet, kernel) => match kernel.way(packet) {
            Way::ByLo => Ok(Wish::new(Reason::New, Wish::BY_LO)),
            _ => Err(Decision::plain(Reason::EngineNat)),
        },
        Role::Syn | Role::Datagram => Ok(Wish::new(Reason::New, 0)),
        // The entry is lost (conntrack -F), or never was. Conntrack would take up the flow as a new one and
        // an engine's rule would catch it: with a socket of our own at this end that breaks it for certain.
        Role::Ack => {
            if !kernel.has_connection(packet) {
                return Err(Decision::plain(Reason::NoSocket));
            }
            let flow = kernel.remembered(packet);
            if !matches!(flow.carrier, Some(Carrier::Listener)) {
                return Ok(Wish::new(Reason::PickedUp, 0));
            }
            // It goes on as it began, whatever is written by now.
            Ok(Wish::granted(Reason::PickedUp, kernel.way(packet).goes_on_by_lo(flow), 0))
        }
        Role::Other => Err(along_with_its_flow(packet, Reason::Stray, kernel)),
    }
}

/// A packet about which there is nothing to decide, and which conntrack does not count with its flow: one that ends a
/// flow whose entry is lost (conntrack -F); or, since the server was the first to speak after that, one that goes the
/// way of replies. If the flow is delivered by `lo`, a rule eats whatever is not.
#[inline(always)]
fn along_with_its_flow<K: Kernel>(packet: &Packet, plain: Reason, kernel: &mut K) -> Decision {
    let way = kernel.way(packet);
    if matches!(way, Way::Plain | Way::Open) {
        return Decision::plain(plain);
    }
    let flow = kernel.remembered(packet);
    if !way.goes_on_by_lo(flow) {
        return Decision::plain(plain);
    }
    let is_within_linux = matches!(flow.carrier, Some(Carrier::Linux));
    Decision { reason: if is_within_linux { Reason::Local } else { Reason::Established }, by_lo: true }
}

#[inline(always)]
fn with_entry<K: Kernel>(packet: &Packet, entry: Entry, kernel: &mut K) -> Result<Wish, Decision> {
    if let Some(reason) = entry.replaceable(packet) {
        if !matches!(packet.role, Role::Ack) {
            return Ok(Wish::new(reason, Wish::REPLACES));
        }
        // Whether the flow was steered when it began, and still has its socket here: then an engine's DNAT of it is
        // wrong for certain.
        let flow = kernel.remembered(packet);
        if !matches!(flow.carrier, Some(Carrier::Listener)) || !kernel.has_connection(packet) {
            return Err(Decision::plain(Reason::EngineNat));
        }
        return Ok(Wish::granted(reason, kernel.way(packet).goes_on_by_lo(flow), Wish::REPLACES));
    }
    if entry.is_reply {
        // Of a translated flow these are replies indeed.
        let is_reply = entry.status & status::DST_NAT != 0;
        return Err(if is_reply {
            Decision::plain(Reason::Reply)
        } else {
            along_with_its_flow(packet, Reason::Reply, kernel)
        });
    }
    if entry.status & status::DST_NAT != 0 {
        // A datagram does not tell whether its flow has just begun. Without this note, one whose entry was
        // lost (conntrack -F) would be steered away from the engine that carries it.
        if matches!(packet.role, Role::Datagram) && !is_engines(packet, kernel) {
            // No room: then it is not remembered.
            let _ = kernel.remember(packet, FlowState::new(Carrier::Engine, false));
        }
        return Err(Decision::plain(Reason::EngineNat));
    }
    // What is neither ours nor an engine's is within Linux, or older than we are.
    let plain = if entry.is_ours() { Reason::Established } else { Reason::NotOurs };
    match kernel.way(packet) {
        Way::Plain => Err(Decision::plain(plain)),
        Way::Open if !matches!(packet.role, Role::Syn) => Err(Decision::plain(plain)),
        way => look_closer(packet, entry, way, kernel),
    }
}

#[inline(always)]
fn is_engines<K: Kernel>(packet: &Packet, kernel: &mut K) -> bool {
    matches!(kernel.remembered(packet).carrier, Some(Carrier::Engine))
}

/// A packet of a flow with an entry that stays, where there are two ways.
#[inline(always)]
fn look_closer<K: Kernel>(packet: &Packet, entry: Entry, way: Way, kernel: &mut K) -> Result<Wish, Decision> {
    let is_ours = entry.is_ours();
    let plain = if is_ours { Reason::Established } else { Reason::NotOurs };
    let flow = kernel.remembered(packet);
    // Of a flow within Linux nobody sees the end, so what is remembered may be an earlier one's: only the very SYN
    // that went by lo goes there again without a question, and only datagrams of a flow that has been answered.
    let is_of_this_flow = is_ours
        || match packet.role {
            Role::Syn => is_same_syn(packet, flow),
            Role::Datagram => entry.status & status::SEEN_REPLY != 0,
            Role::Ack | Role::Other => true,
        };
    if flow.by_lo && is_of_this_flow {
        let reason = if is_ours { Reason::Established } else { Reason::Local };
        return Err(Decision { reason, by_lo: true });
    }
    // A flow that goes on goes its way, whatever is known by now. Only where that was forgotten the listener is asked;
    // of datagrams within Linux it never was noted.
    let goes_on = match packet.role {
        Role::Syn => is_ours && entry.tcp_state != tcp_state::NONE,
        Role::Ack | Role::Other => true,
        Role::Datagram => is_ours,
    };
    if goes_on && flow.carrier.is_some() {
        if !matches!(way, Way::ByLo) {
            return Err(Decision::plain(plain));
        }
        // By now a rule is known that drops what goes the plain way. No policy ends a connection.
        if is_ours && matches!(packet.role, Role::Ack | Role::Other) {
            return Ok(Wish::granted(plain, true, Wish::GOES_ON));
        }
    }
    // Of ours, conntrack has seen no packet so far, and yet this is the second: between us and conntrack is nothing but
    // the raw table, and what hangs on the interface behind us. Of a flow within Linux, whose entry was made on its way
    // out, the same SYN comes once more: nobody answered. If it was the listener whose queue is full, its flows go by
    // lo from now on, and nothing else changes.
    let is_lost = matches!(packet.role, Role::Syn)
        && if is_ours { entry.tcp_state == tcp_state::NONE } else { is_same_syn(packet, flow) };
    let lost = if is_lost { Wish::LOST } else { 0 };
    // An unanswered datagram may be of a flow by lo all the same.
    let wants_lo = matches!(way, Way::ByLo) || flow.by_lo && matches!(packet.role, Role::Datagram);
    Ok(Wish::new(plain, Wish::GOES_ON | lost | if wants_lo { Wish::BY_LO } else { 0 }))
}

/// Whether this SYN of a flow within Linux has come by before.
#[inline(always)]
const fn is_same_syn(packet: &Packet, flow: Remembered) -> bool {
    matches!(flow.carrier, Some(Carrier::Linux)) && flow.sequence == packet.sequence
}

/// A flow that goes on to a listener that is to be steered. It goes by `lo` if that is wanted, or if it is found out
/// now that it has to.
#[inline(always)]
fn go_on<K: Kernel>(packet: &Packet, wish: Wish, wants_lo: bool, kernel: &mut K) -> Decision {
    let learns = wish.has(Wish::LOST) && !wants_lo;
    if learns {
        kernel.learn(packet);
    }
    let by_lo = wants_lo || learns;
    let is_ours = matches!(wish.reason(), Reason::Established);
    if by_lo || matches!(packet.role, Role::Syn) {
        // No room: then the next packet asks the listener.
        let _ = kernel.remember(packet, FlowState::seen(is_ours, packet.sequence, by_lo));
    }
    let reason = match (learns, by_lo, is_ours) {
        (true, ..) => Reason::Learned,
        (_, true, false) => Reason::Local,
        _ => wish.reason(),
    };
    Decision { reason, by_lo }
}

impl Entry {
    /// Why the packet's flow needs a new entry in this one's place, if it does: because it begins; or because it
    /// is one of ours that an engine's rule caught in its midst, its entry having been flushed after we had seen
    /// it and before the stack did.
    ///
    /// Nothing wider than this may ever be taken away: it would end established flows that engines carry.
    #[inline(always)]
    pub const fn replaceable(&self, packet: &Packet) -> Option<Reason> {
        match packet.role {
            Role::Syn if self.is_finished() => Some(Reason::Reused),
            Role::Syn | Role::Datagram if self.is_caught() && !self.is_reply => Some(Reason::Healed),
            Role::Ack if self.is_caught() && !self.is_reply => Some(Reason::PickedUp),
            _ => None,
        }
    }

    /// Whether we made this entry, in whatever run. In ours the destination is decided and the source never is:
    /// an entry that stands in the table already is left as it is (`nf_nat_setup_info`), and ours stands there
    /// from the start. Of any other entry both are decided before it gets there, on the flow's first way through
    /// the stack; or neither, where nobody does NAT at all.
    #[inline(always)]
    const fn is_ours(&self) -> bool {
        self.status & (status::SRC_NAT_DONE | status::DST_NAT_DONE) == status::DST_NAT_DONE
    }

    /// Whether the TCP flow of this entry is over. A SYN then begins another one: conntrack throws an entry in
    /// `TIME_WAIT` away, whichever side opened it, and starts over with a fresh one that engines' rules catch
    /// (`nf_conntrack_tcp_packet`, "Attempt to reopen a closed/aborted connection"); to one in CLOSE that the
    /// other side opened, the SYN is invalid.
    #[inline(always)]
    const fn is_finished(&self) -> bool {
        matches!(self.tcp_state, tcp_state::TIME_WAIT | tcp_state::CLOSE)
    }

    /// Whether an engine's DNAT caught the flow and it cannot work: no answer came, and no source NAT is in
    /// place, so the container sees 127.0.0.1 and would answer itself. Engines that need no help (Podman,
    /// Docker without its proxy) masquerade such flows; and a program on this machine, to which a rule may
    /// redirect a port, need not answer at all.
    #[inline(always)]
    const fn is_caught(&self) -> bool {
        self.status & (status::DST_NAT | status::SRC_NAT | status::SEEN_REPLY) == status::DST_NAT
            && !self.is_to_loopback
    }
}

/// Whether a flow that begins with this packet is to be steered, and to whom: the one place that decides about a port.
/// What is written about the port, else about who serves it, else the default.
#[inline(always)]
fn admit<K: Kernel>(packet: &Packet, kernel: &mut K) -> Result<Listener, Reason> {
    let written = kernel.written_policy(packet);
    if matches!(written, Policy::Pass) {
        return Err(Reason::Exempt);
    }
    let Some(listener) = kernel.listener(packet) else { return Err(Reason::NoListener) };
    let policy = match (written, listener.owner) {
        (Policy::Steer, _) | (_, Policy::Steer) => Policy::Steer,
        (_, Policy::Pass) => return Err(Reason::OwnerPolicy),
        (_, Policy::Unset) => kernel.default_policy(),
    };
    if matches!(policy, Policy::Steer) { Ok(listener) } else { Err(Reason::DefaultPolicy) }
}
