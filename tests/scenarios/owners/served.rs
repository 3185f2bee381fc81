//! Who serves, in every way in which sockets come to be served.

use wsl_mirror_lab::{
    Lab,
    checks::{OrPanic as _, load, ok, unload},
    lab_sockets, nat, pace,
    sockets::{PROXY, answers, answers_udp},
};

use crate::loaded;

#[test]
fn the_engines_proxy_is_steered_and_a_host_service_never_meets_us() {
    let lab = Lab::builder().build().or_panic();
    nat::trap(lab.guest()).or_panic();
    load(&lab);
    let mut proxy = lab_sockets!(&lab, PROXY);
    proxy.serve("0.0.0.0:8080").or_panic();
    // No engine's port: the trap has no rule for it.
    let mut host = lab_sockets!(&lab, "nginx");
    host.serve("0.0.0.0:5300").or_panic();
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
    assert_eq!(answers(&lab, 5300).as_deref(), Some("nginx"));
    assert!(lab.packets("steer_new").or_panic() >= 1);
    assert!(lab.packets("pass_default_policy").or_panic() >= 1);
    let entries = lab.guest().run("conntrack", ["-L", "-p", "tcp", "--dport", "5300"]).or_panic().stdout;
    assert!(!entries.contains("127.119.0.1"), "{entries}");
    unload(&lab);
    assert_eq!(answers(&lab, 8080), None, "the trap is no trap");
}

#[test]
fn of_two_owners_on_one_port_each_serves_its_own_address() {
    let lab = loaded();
    let mut proxy = lab_sockets!(&lab, PROXY);
    let mut other = lab_sockets!(&lab, "other");
    // 127.0.0.1 is nearer than any address.
    proxy.serve("127.0.0.1:8080").or_panic();
    other.serve("192.168.50.10:8080").or_panic();
    other.serve("127.0.0.1:8081").or_panic();
    proxy.serve("192.168.50.10:8081").or_panic();
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
    assert_eq!(answers(&lab, 8081), None, "steered because of a socket on another address");
    other.serve("0.0.0.0:8082").or_panic();
    assert_eq!(answers(&lab, 8082), None);
}

#[test]
fn an_ipv6_socket_counts_exactly_if_it_serves_ipv4_too() {
    let lab = loaded();
    let mut proxy = lab_sockets!(&lab, PROXY);
    let mut other = lab_sockets!(&lab, "other");
    proxy.serve("[::]:8080").or_panic();
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY), "[::] serves IPv4");
    proxy.tell("bind six tcp [::]:8081 v6only").or_panic();
    proxy.tell("serve six").or_panic();
    assert_eq!(answers(&lab, 8081), None);
    assert!(
        lab.packets("pass_no_listener").or_panic() >= 1,
        "a socket for IPv6 alone is no listener of ours"
    );
    // As Docker does it: one for each family, side by side.
    other.tell("bind six tcp [::]:8082 v6only").or_panic();
    proxy.serve("0.0.0.0:8082").or_panic();
    assert_eq!(answers(&lab, 8082).as_deref(), Some(PROXY));
    proxy.tell("bind seven tcp [::]:8083 v6only").or_panic();
    other.serve("0.0.0.0:8083").or_panic();
    assert_eq!(answers(&lab, 8083), None);
}

#[test]
fn of_a_group_with_mixed_owners_each_flow_gets_what_its_own_listener_gets() {
    let lab = loaded();
    let mut proxy = lab_sockets!(&lab, PROXY);
    let mut other = lab_sockets!(&lab, "other");
    for process in [&mut proxy, &mut other] {
        process.tell("bind group tcp 127.0.0.1:8080 reuseport").or_panic();
        process.tell("serve group").or_panic();
    }
    let mut by_proxy = 0;
    let flows = 24;
    for _ in 0..flows {
        match answers(&lab, 8080).as_deref() {
            Some(PROXY) => by_proxy += 1,
            // The others are caught by the engine's rule, as without us.
            None => {}
            Some(other) => panic!("a flow to {other} was steered"),
        }
    }
    assert!(by_proxy > 0 && by_proxy < flows, "{by_proxy} of {flows}: nobody chose");
}

#[test]
fn a_socket_is_served_by_whom_it_was_handed_to_also_when_the_first_holder_is_gone() {
    let lab = loaded();
    // As dockerd does it from 28.0 on: it binds and listens, and hands the descriptor on; Go asks for its address.
    let mut daemon = lab_sockets!(&lab, "dockerd");
    daemon.tell("bind port tcp 0.0.0.0:8080").or_panic();
    daemon.tell("ask port").or_panic();
    assert_eq!(answers(&lab, 8080), None, "held by nobody who accepts");
    assert_eq!(daemon.tell("tag port").or_panic(), "dockerd 0");
    daemon.tell("hand port docker-proxy ask serve").or_panic();
    assert_eq!(daemon.tell("tag port").or_panic(), "docker-proxy 0");
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
    // And one that is handed on without a question stays its binder's, whoever serves it.
    daemon.tell("bind quiet tcp 0.0.0.0:8081").or_panic();
    daemon.tell("hand quiet docker-proxy serve").or_panic();
    assert_eq!(answers(&lab, 8081), None);
    daemon.leave().or_panic();
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY), "with its first holder gone");
}

#[test]
fn a_socket_that_systemd_hands_to_the_proxy_is_the_proxys() {
    let lab = loaded();
    let mut systemd = lab_sockets!(&lab, "systemd");
    systemd.tell("bind unit tcp 127.0.0.1:8080").or_panic();
    assert_eq!(answers(&lab, 8080), None);
    // sd_is_socket(3) and every net.FileListener ask.
    systemd.tell("hand unit docker-proxy ask serve").or_panic();
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
}

#[test]
fn a_proxy_that_comes_back_is_steered_again_and_its_successor_is_judged_by_itself() {
    let lab = loaded();
    for _ in 0..pace::rounds(5) {
        let mut proxy = lab_sockets!(&lab, PROXY);
        proxy.serve("0.0.0.0:8080").or_panic();
        assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
        drop(proxy);
        let mut other = lab_sockets!(&lab, "other");
        other.serve("0.0.0.0:8080").or_panic();
        assert_eq!(answers(&lab, 8080), None, "taken for the one that served before");
    }
}

#[test]
fn a_port_that_the_kernel_chose_is_known_by_its_owner_too() {
    // From the ports that Windows has leased to the guest.
    let lab = Lab::builder().build().or_panic();
    lab.guest().run(
        "nft",
        ["add table ip engine; add chain ip engine pre { type nat hook prerouting priority dstnat; }; \
          add rule ip engine pre iifname loopback0 ip daddr 127.0.0.1 tcp dport 1-65535 dnat to 192.0.2.7:80"],
    ).or_panic();
    load(&lab);
    let mut proxy = lab_sockets!(&lab, PROXY);
    proxy.tell("bind any tcp 127.0.0.1:0").or_panic();
    let chosen = proxy.tell("port any").or_panic().parse().or_panic();
    proxy.tell("serve any").or_panic();
    assert_eq!(answers(&lab, chosen).as_deref(), Some(PROXY), "port {chosen}");
}

#[test]
fn udp_is_steered_by_who_bound_the_socket_and_one_that_nobody_bound_passes() {
    let lab = loaded();
    let mut proxy = lab_sockets!(&lab, PROXY);
    let mut other = lab_sockets!(&lab, "other");
    proxy.tell("bind u udp 0.0.0.0:8080").or_panic();
    proxy.tell("serve u").or_panic();
    other.tell("bind u udp 0.0.0.0:8081").or_panic();
    other.tell("serve u").or_panic();
    assert_eq!(answers_udp(&lab, 8080).as_deref(), Some(PROXY));
    assert_eq!(answers_udp(&lab, 8081), None);
    // The kernel binds it when it sends; no hook sees that.
    proxy.tell("unbound v").or_panic();
    assert_eq!(proxy.tell("tag v").or_panic(), "none");
    proxy.tell("send v 127.0.0.1:9").or_panic();
    assert_eq!(proxy.tell("tag v").or_panic(), "none");
}

#[test]
fn a_users_own_program_of_that_name_is_not_believed() {
    let lab = loaded();
    let mut mine = lab_sockets!(&lab, PROXY);
    mine.tell("user 1000").or_panic();
    mine.serve("0.0.0.0:8080").or_panic();
    assert_eq!(mine.tell("tag 0.0.0.0:8080").or_panic(), "docker-proxy 1000");
    assert_eq!(answers(&lab, 8080), None);
}

#[test]
fn a_socket_on_the_same_port_in_another_network_namespace_is_another_socket() {
    let lab = loaded();
    // That namespace is the one of Windows, which sends these ports to the guest, whoever listens on them over there.
    let mut proxy_elsewhere = lab_sockets!(&lab, lab.windows(), PROXY);
    proxy_elsewhere.serve("0.0.0.0:8180").or_panic();
    let mut other = lab_sockets!(&lab, "other");
    other.serve("0.0.0.0:8180").or_panic();
    assert_eq!(answers(&lab, 8180), None, "steered because of a socket in another namespace");
    let mut proxy = lab_sockets!(&lab, PROXY);
    proxy.serve("0.0.0.0:8181").or_panic();
    let mut other_elsewhere = lab_sockets!(&lab, lab.windows(), "other");
    other_elsewhere.serve("0.0.0.0:8181").or_panic();
    assert_eq!(answers(&lab, 8181).as_deref(), Some(PROXY));
}

#[test]
fn the_configuration_names_other_owners_and_the_user_is_above_all_of_them() {
    let lab = Lab::builder().build().or_panic();
    nat::trap(lab.guest()).or_panic();
    let configure = |text: &str| {
        let path = "/etc/wsl-mirror.toml";
        lab.guest().enter(|| std::fs::write(path, text)).or_panic();
        load(&lab);
    };
    configure("owners = [{ name = \"rootlessport\", uid = 1000, policy = \"steer\" }]\n");
    let mut rootless = lab_sockets!(&lab, "rootlessport");
    rootless.serve("0.0.0.0:8080").or_panic();
    assert_eq!(answers(&lab, 8080), None, "as root it is another one");
    rootless.tell("user 1000").or_panic();
    rootless.serve("0.0.0.0:8081").or_panic();
    assert_eq!(answers(&lab, 8081).as_deref(), Some("rootlessport"));

    let mut proxy = lab_sockets!(&lab, PROXY);
    proxy.serve("0.0.0.0:8082").or_panic();
    assert_eq!(answers(&lab, 8082).as_deref(), Some(PROXY), "what is built in stays");
    ok(&lab, &["exempt", "add", "8082"]);
    assert_eq!(answers(&lab, 8082), None, "exempt");
    ok(&lab, &["exempt", "del", "8082"]);

    configure("owners = [{ name = \"docker-proxy\", policy = \"pass\" }]\ndefault = \"steer\"\n");
    assert_eq!(answers(&lab, 8082), None, "the file overrules what is built in");
    assert!(lab.packets("pass_owner_policy").or_panic() >= 1);
    assert_eq!(answers(&lab, 8080).as_deref(), Some("rootlessport"), "the blunt default");
    configure("owners = [{ name = \"rootlessport\", uid = \"any\", policy = \"steer\" }]\n");
    assert_eq!(answers(&lab, 8080).as_deref(), Some("rootlessport"), "whatever the user");
    assert_eq!(answers(&lab, 8081).as_deref(), Some("rootlessport"), "whatever the user");
}
