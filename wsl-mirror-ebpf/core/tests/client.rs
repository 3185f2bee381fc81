//! Linux' own clients: what a connect or a datagram gets, in made-up worlds.

use wsl_mirror_core::abi::{
    ClientOutcome, Endpoint, LinuxClients, Path, Policy, PortKey, PortPolicy, Protocol, Settings, Target,
};
use wsl_mirror_core::client::{Attempt, Decision, Machine, decide};
use wsl_mirror_core::verdict::Listener;

const LOCALHOST: [u8; 4] = [127, 0, 0, 1];
const LAN: [u8; 4] = [192, 168, 50, 10];
const CONTAINER: Endpoint = Endpoint::new([172, 17, 0, 2], 80);
const LO_MARK: u32 = 0x40;
const NETNS: u64 = 7;

/// A machine with one listener, for any address.
#[derive(Clone, Copy)]
struct World {
    own: Option<[u8; 4]>,
    listener: Listener,
    written: PortPolicy,
    settings: Settings,
    netns_cookie: u64,
}

impl Machine for World {
    fn is_own_address(&mut self, address: [u8; 4]) -> bool {
        assert_ne!(address[0], 127, "no question about 127.0.0.0/8");
        self.own == Some(address)
    }

    fn listener(&mut self, _protocol: Protocol, destination: Endpoint) -> Listener {
        assert!(destination.address[0] == 127 || self.own == Some(destination.address), "another machine's");
        self.listener
    }

    fn port_policy(&mut self, port: PortKey) -> PortPolicy {
        assert_eq!(port.port, 8080);
        self.written
    }

    fn netns_cookie(&mut self) -> u64 {
        self.netns_cookie
    }
}

impl World {
    fn new() -> Self {
        Self {
            own: None,
            listener: listener(Some(target(0))),
            written: PortPolicy::default(),
            settings: Settings {
                linux_clients: LinuxClients::Translated as u32,
                lo_mark: LO_MARK,
                path: Path::Auto as u32,
                netns_cookie: NETNS,
                ..Settings::default()
            },
            netns_cookie: NETNS,
        }
    }

    fn decide(mut self, attempt: &Attempt) -> Decision {
        let settings = self.settings;
        decide(attempt, &settings, &mut self)
    }

    /// What becomes of an attempt to reach 127.0.0.1, and whether it stays on lo.
    fn outcome(self, protocol: Protocol) -> (ClientOutcome, bool) {
        let decision = self.decide(&to(LOCALHOST, protocol));
        assert!(decision.is_local);
        (decision.outcome, decision.stays_on_lo)
    }
}

fn listener(target: Option<Target>) -> Listener {
    Listener::new(Policy::Steer, target)
}

fn target(flags: u8) -> Target {
    Target { address: CONTAINER.address, port: CONTAINER.port, flags, ..Target::default() }
}

fn to(address: [u8; 4], protocol: Protocol) -> Attempt {
    Attempt {
        protocol,
        destination: Endpoint::new(address, 8080),
        source: [0; 4],
        is_bound_to_device: false,
        mark: 0,
    }
}

#[test]
fn a_client_of_a_published_port_goes_to_the_container() {
    for protocol in Protocol::ALL {
        for address in [LOCALHOST, [127, 0, 0, 2], [127, 255, 255, 254], [0; 4]] {
            let decision = World::new().decide(&to(address, protocol));
            assert!(decision.is_local);
            assert_eq!((decision.outcome, decision.container), (ClientOutcome::Translated, CONTAINER));
        }
    }
}

#[test]
fn another_machine_is_never_asked_for_a_listener() {
    for address in
        [[10, 0, 0, 1], LAN, [172, 17, 0, 2], [255; 4], [224, 0, 0, 1], [126, 0, 0, 1], [128, 0, 0, 1]]
    {
        assert!(!World::new().decide(&to(address, Protocol::Tcp)).is_local, "{address:?}");
    }
    let world = World { own: Some(LAN), ..World::new() };
    let decision = world.decide(&to(LAN, Protocol::Udp));
    assert_eq!((decision.is_local, decision.outcome), (true, ClientOutcome::Translated));
    assert!(!decision.stays_on_lo, "only 127.0.0.1 does");
}

#[test]
fn address_zero_means_the_sockets_own_address() {
    let bound = |source| Attempt { source, ..to([0; 4], Protocol::Tcp) }.resolved().address;
    assert_eq!((bound([0; 4]), bound(LAN), bound([127, 0, 0, 2])), (LOCALHOST, LAN, [127, 0, 0, 2]));
    let elsewhere = Attempt { source: LAN, ..to([0; 4], Protocol::Tcp) };
    assert!(!World::new().decide(&elsewhere).is_local);
}

#[test]
fn what_the_user_wrote_about_a_port_counts() {
    use ClientOutcome::{Exempt, NoTarget, PathProxy, PolicySteer, Translated};
    for (policy, path, global, expected) in [
        (Policy::Unset, Path::Unset, Path::Unset, Translated),
        (Policy::Unset, Path::Unset, Path::Auto, Translated),
        (Policy::Unset, Path::Unset, Path::Direct, Translated),
        (Policy::Unset, Path::Unset, Path::Proxy, PathProxy),
        (Policy::Unset, Path::Auto, Path::Proxy, Translated),
        (Policy::Unset, Path::Proxy, Path::Direct, PathProxy),
        (Policy::Pass, Path::Direct, Path::Direct, Exempt),
        (Policy::Steer, Path::Direct, Path::Direct, PolicySteer),
        (Policy::Direct, Path::Proxy, Path::Proxy, Translated),
    ] {
        let written = PortPolicy { config: policy as u8, path: path as u8, ..PortPolicy::default() };
        let settings = Settings { path: global as u32, ..World::new().settings };
        let world = World { written, settings, ..World::new() };
        let stays = expected != Exempt;
        assert_eq!(world.outcome(Protocol::Tcp), (expected, stays), "{policy:?} {path:?} {global:?}");
        let without = World { listener: listener(None), ..world };
        let expected = if expected == Exempt { Exempt } else { NoTarget };
        assert_eq!(without.outcome(Protocol::Tcp), (expected, stays), "no target, {policy:?}");
    }
}

#[test]
fn nobody_is_translated_while_the_switch_is_off() {
    for number in [LinuxClients::Off as u32, 7] {
        let settings = Settings { linux_clients: number, ..World::new().settings };
        let world = World { settings, ..World::new() };
        assert_eq!(world.outcome(Protocol::Tcp), (ClientOutcome::SwitchedOff, true));
    }
}

#[test]
fn a_port_that_a_rule_closes_is_not_opened() {
    for (flags, expected) in [
        (Target::CLOSED_TO_LINUX, (ClientOutcome::Closed, false)),
        (Target::CLOSED_TO_LINUX | Target::DROPPED, (ClientOutcome::Closed, false)),
        (Target::DROPPED, (ClientOutcome::Translated, true)),
    ] {
        let world = World { listener: listener(Some(target(flags))), ..World::new() };
        assert_eq!(world.outcome(Protocol::Tcp), expected, "{flags}");
    }
}

#[test]
fn a_client_that_has_chosen_its_way_keeps_it() {
    let free = to(LOCALHOST, Protocol::Tcp);
    for (attempt, expected, stays) in [
        (Attempt { source: LOCALHOST, ..free }, ClientOutcome::ClientBound, true),
        (Attempt { source: [127, 0, 0, 2], ..free }, ClientOutcome::ClientBound, false),
        (Attempt { source: LAN, ..free }, ClientOutcome::Translated, false),
        (Attempt { is_bound_to_device: true, ..free }, ClientOutcome::ClientBound, false),
        (Attempt { mark: 1, ..free }, ClientOutcome::ClientBound, true),
        (Attempt { mark: LO_MARK, ..free }, ClientOutcome::Translated, true),
        (Attempt { mark: LO_MARK | 0x100, ..free }, ClientOutcome::ClientBound, true),
    ] {
        let decision = World::new().decide(&attempt);
        assert_eq!((decision.outcome, decision.stays_on_lo), (expected, stays), "{attempt:?}");
    }
}

#[test]
fn only_a_connection_to_a_listener_stays_on_lo() {
    let host_service = World { listener: listener(None), ..World::new() };
    assert_eq!(host_service.outcome(Protocol::Tcp), (ClientOutcome::NoTarget, true));
    assert_eq!(host_service.outcome(Protocol::Udp), (ClientOutcome::NoTarget, false));
    let never_sent = PortPolicy { flags: PortPolicy::NEVER_SENT, ..PortPolicy::default() };
    let never_sent = World { written: never_sent, ..host_service };
    assert_eq!(never_sent.outcome(Protocol::Udp), (ClientOutcome::NoTarget, true));
    let nobody = World { listener: Listener::NONE, ..World::new() };
    assert_eq!(nobody.outcome(Protocol::Tcp), (ClientOutcome::NoListener, false));
    let without_rules = World { settings: Settings { lo_mark: 0, ..World::new().settings }, ..host_service };
    assert_eq!(without_rules.outcome(Protocol::Tcp), (ClientOutcome::NoTarget, false));
    let in_a_container = World { netns_cookie: 8, ..host_service };
    assert_eq!(in_a_container.outcome(Protocol::Tcp), (ClientOutcome::NoTarget, false));
    assert!(!host_service.decide(&to([127, 0, 0, 2], Protocol::Tcp)).stays_on_lo, "never leaves lo");
}
