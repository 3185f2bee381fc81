//! Windows accepts replies only of flows that it knows: what happens to established flows means something.

use std::time::Duration;

use wsl_mirror_lab::{Dropped, Lab, checks::HELLO, loopback, pace, servers, tcp, udp};

use crate::tcp_echo;

#[test]
fn replies_of_a_forgotten_flow_are_dropped() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    for namespace in [lab.windows(), lab.guest()] {
        let client =
            tcp::Client::new(namespace, loopback(8100)).limit(pace::limit(Duration::from_millis(700)));
        let mut stream = client.connect().unwrap();
        assert_eq!(tcp::exchange(&mut stream, HELLO), Ok(HELLO.to_vec()), "{}", namespace.name());
        let before = lab.dropped(Dropped::UnknownFlow).unwrap();
        lab.forget_flows().unwrap();
        let stalled = tcp::exchange(&mut stream, HELLO);
        assert!(stalled.is_err(), "{}: {stalled:?}", namespace.name());
        assert!(lab.dropped(Dropped::UnknownFlow).unwrap() > before, "{}", namespace.name());
        assert!(tcp_echo(&lab, true, 8100).is_ok(), "new flows are as before");
    }
}

#[test]
fn no_packet_of_usual_traffic_is_unknown() {
    let lab = Lab::builder().build().unwrap();
    let _servers = [
        servers::tcp_echo(lab.guest(), loopback(8100)).unwrap(),
        servers::udp_echo(lab.guest(), loopback(8100)).unwrap(),
        servers::tcp_echo(lab.windows(), loopback(9100)).unwrap(),
        servers::udp_echo(lab.windows(), loopback(9100)).unwrap(),
    ];
    for (namespace, port) in
        [(lab.windows(), 8100), (lab.guest(), 8100), (lab.guest(), 9100), (lab.windows(), 9100)]
    {
        assert_eq!(tcp::Client::new(namespace, loopback(port)).echo(HELLO), Ok(HELLO.to_vec()));
        assert_eq!(udp::Client::new(namespace, loopback(port)).request(HELLO), Ok(HELLO.to_vec()));
    }
    for reason in [Dropped::UnknownFlow, Dropped::Firewall, Dropped::NeverSent, Dropped::Failed] {
        assert_eq!(lab.dropped(reason).unwrap(), 0, "{reason:?}");
    }
}
