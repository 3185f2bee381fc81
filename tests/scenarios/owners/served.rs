//! Who serves, in every way in which sockets come to be served.

use anyhow::Result;
use wsl_mirror_lab::{Lab, nat, pace};

use crate::{
    PROXY,
    clients::{answers, answers_udp},
    load, loaded, process, process_in,
};

#[test]
fn the_engines_proxy_is_steered_and_a_host_service_never_meets_us() -> Result<()> {
    let lab = Lab::builder().build()?;
    nat::trap(lab.guest())?;
    load(&lab)?;
    let mut proxy = process(&lab, PROXY)?;
    proxy.serve("0.0.0.0:8080")?;
    // What the lab itself serves on, and is no engine's: the trap has no rule for it.
    let mut host = process(&lab, "nginx")?;
    host.serve("0.0.0.0:5353")?;
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
    assert_eq!(answers(&lab, 5353).as_deref(), Some("nginx"));
    assert!(lab.packets("steer_new")? >= 1);
    assert!(lab.packets("pass_default_policy")? >= 1);
    let entries = lab.guest().run("conntrack", ["-L", "-p", "tcp", "--dport", "5353"])?.stdout;
    assert!(!entries.contains("mark=4096"), "{entries}");
    lab.wsl_mirror(&["unload"])?.success()?;
    assert_eq!(answers(&lab, 8080), None, "the trap is no trap");
    Ok(())
}

#[test]
fn of_two_owners_on_one_port_each_serves_its_own_address() -> Result<()> {
    let lab = loaded()?;
    let mut proxy = process(&lab, PROXY)?;
    let mut other = process(&lab, "other")?;
    // 127.0.0.1 is nearer than any address.
    proxy.serve("127.0.0.1:8080")?;
    other.serve("192.168.50.10:8080")?;
    other.serve("127.0.0.1:8081")?;
    proxy.serve("192.168.50.10:8081")?;
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
    assert_eq!(answers(&lab, 8081), None, "steered because of a socket on another address");
    other.serve("0.0.0.0:8082")?;
    assert_eq!(answers(&lab, 8082), None);
    Ok(())
}

#[test]
fn an_ipv6_socket_counts_exactly_if_it_serves_ipv4_too() -> Result<()> {
    let lab = loaded()?;
    let mut proxy = process(&lab, PROXY)?;
    let mut other = process(&lab, "other")?;
    proxy.serve("[::]:8080")?;
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY), "[::] serves IPv4");
    proxy.tell("bind six tcp [::]:8081 v6only")?;
    proxy.tell("serve six")?;
    assert_eq!(answers(&lab, 8081), None);
    assert!(lab.packets("pass_no_listener")? >= 1, "a socket for IPv6 alone is no listener of ours");
    // As Docker does it: one for each family, side by side.
    other.tell("bind six tcp [::]:8082 v6only")?;
    proxy.serve("0.0.0.0:8082")?;
    assert_eq!(answers(&lab, 8082).as_deref(), Some(PROXY));
    proxy.tell("bind seven tcp [::]:8083 v6only")?;
    other.serve("0.0.0.0:8083")?;
    assert_eq!(answers(&lab, 8083), None);
    Ok(())
}

#[test]
fn of_a_group_with_mixed_owners_each_flow_gets_what_its_own_listener_gets() -> Result<()> {
    let lab = loaded()?;
    let mut proxy = process(&lab, PROXY)?;
    let mut other = process(&lab, "other")?;
    for process in [&mut proxy, &mut other] {
        process.tell("bind group tcp 127.0.0.1:8080 reuseport")?;
        process.tell("serve group")?;
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
    Ok(())
}

#[test]
fn a_socket_is_served_by_whom_it_was_handed_to_also_when_the_first_holder_is_gone() -> Result<()> {
    let lab = loaded()?;
    // As dockerd does it from 28.0 on: it binds and listens, and hands the descriptor on; Go asks for its address.
    let mut daemon = process(&lab, "dockerd")?;
    daemon.tell("bind port tcp 0.0.0.0:8080")?;
    daemon.tell("ask port")?;
    assert_eq!(answers(&lab, 8080), None, "held by nobody who accepts");
    assert_eq!(daemon.tell("tag port")?, "dockerd 0");
    daemon.tell("hand port docker-proxy ask serve")?;
    assert_eq!(daemon.tell("tag port")?, "docker-proxy 0");
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
    // And one that is handed on without a question stays its binder's, whoever serves it.
    daemon.tell("bind quiet tcp 0.0.0.0:8081")?;
    daemon.tell("hand quiet docker-proxy serve")?;
    assert_eq!(answers(&lab, 8081), None);
    daemon.leave()?;
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY), "with its first holder gone");
    Ok(())
}

#[test]
fn a_socket_that_systemd_hands_to_the_proxy_is_the_proxys() -> Result<()> {
    let lab = loaded()?;
    let mut systemd = process(&lab, "systemd")?;
    systemd.tell("bind unit tcp 127.0.0.1:8080")?;
    assert_eq!(answers(&lab, 8080), None);
    // sd_is_socket(3) and every net.FileListener ask.
    systemd.tell("hand unit docker-proxy ask serve")?;
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
    Ok(())
}

#[test]
fn a_proxy_that_comes_back_is_steered_again_and_its_successor_is_judged_by_itself() -> Result<()> {
    let lab = loaded()?;
    for _ in 0..pace::rounds(5) {
        let mut proxy = process(&lab, PROXY)?;
        proxy.serve("0.0.0.0:8080")?;
        assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
        drop(proxy);
        let mut other = process(&lab, "other")?;
        other.serve("0.0.0.0:8080")?;
        assert_eq!(answers(&lab, 8080), None, "taken for the one that served before");
    }
    Ok(())
}

#[test]
fn a_port_that_the_kernel_chose_is_known_by_its_owner_too() -> Result<()> {
    // From the ports that Windows has leased to the guest.
    let lab = Lab::builder().build()?;
    lab.guest().run(
        "nft",
        ["add table ip engine; add chain ip engine pre { type nat hook prerouting priority dstnat; }; \
          add rule ip engine pre iifname loopback0 ip daddr 127.0.0.1 tcp dport 1-65535 dnat to 192.0.2.7:80"],
    )?;
    load(&lab)?;
    let mut proxy = process(&lab, PROXY)?;
    proxy.tell("bind any tcp 127.0.0.1:0")?;
    let chosen = proxy.tell("port any")?.parse()?;
    proxy.tell("serve any")?;
    assert_eq!(answers(&lab, chosen).as_deref(), Some(PROXY), "port {chosen}");
    Ok(())
}

#[test]
fn udp_is_steered_by_who_bound_the_socket_and_one_that_nobody_bound_passes() -> Result<()> {
    let lab = loaded()?;
    let mut proxy = process(&lab, PROXY)?;
    let mut other = process(&lab, "other")?;
    proxy.tell("bind u udp 0.0.0.0:8080")?;
    proxy.tell("serve u")?;
    other.tell("bind u udp 0.0.0.0:8081")?;
    other.tell("serve u")?;
    assert_eq!(answers_udp(&lab, 8080).as_deref(), Some(PROXY));
    assert_eq!(answers_udp(&lab, 8081), None);
    // The kernel binds it when it sends; no hook sees that.
    proxy.tell("unbound v")?;
    assert_eq!(proxy.tell("tag v")?, "none");
    proxy.tell("send v 127.0.0.1:9")?;
    assert_eq!(proxy.tell("tag v")?, "none");
    Ok(())
}

#[test]
fn a_users_own_program_of_that_name_is_not_believed() -> Result<()> {
    let lab = loaded()?;
    let mut mine = process(&lab, PROXY)?;
    mine.tell("user 1000")?;
    mine.serve("0.0.0.0:8080")?;
    assert_eq!(mine.tell("tag 0.0.0.0:8080")?, "docker-proxy 1000");
    assert_eq!(answers(&lab, 8080), None);
    Ok(())
}

#[test]
fn a_socket_on_the_same_port_in_another_network_namespace_is_another_socket() -> Result<()> {
    let lab = loaded()?;
    // That namespace is the one of Windows, which sends these ports to the guest, whoever listens on them over there.
    let mut proxy_elsewhere = process_in(&lab, lab.windows(), PROXY)?;
    proxy_elsewhere.serve("0.0.0.0:8180")?;
    let mut other = process(&lab, "other")?;
    other.serve("0.0.0.0:8180")?;
    assert_eq!(answers(&lab, 8180), None, "steered because of a socket in another namespace");
    let mut proxy = process(&lab, PROXY)?;
    proxy.serve("0.0.0.0:8181")?;
    let mut other_elsewhere = process_in(&lab, lab.windows(), "other")?;
    other_elsewhere.serve("0.0.0.0:8181")?;
    assert_eq!(answers(&lab, 8181).as_deref(), Some(PROXY));
    Ok(())
}

#[test]
fn the_configuration_names_other_owners_and_the_user_is_above_all_of_them() -> Result<()> {
    let lab = Lab::builder().build()?;
    nat::trap(lab.guest())?;
    let configure = |text: &str| -> Result<()> {
        let path = "/etc/wsl-mirror.toml";
        lab.guest().enter(|| std::fs::write(path, text))?;
        load(&lab)
    };
    configure("owners = [{ name = \"rootlessport\", uid = 1000, policy = \"steer\" }]\n")?;
    let mut rootless = process(&lab, "rootlessport")?;
    rootless.serve("0.0.0.0:8080")?;
    assert_eq!(answers(&lab, 8080), None, "as root it is another one");
    rootless.tell("user 1000")?;
    rootless.serve("0.0.0.0:8081")?;
    assert_eq!(answers(&lab, 8081).as_deref(), Some("rootlessport"));

    let mut proxy = process(&lab, PROXY)?;
    proxy.serve("0.0.0.0:8082")?;
    assert_eq!(answers(&lab, 8082).as_deref(), Some(PROXY), "what is built in stays");
    lab.wsl_mirror(&["exempt", "add", "8082"])?.success()?;
    assert_eq!(answers(&lab, 8082), None, "exempt");
    lab.wsl_mirror(&["exempt", "del", "8082"])?.success()?;

    configure("owners = [{ name = \"docker-proxy\", policy = \"pass\" }]\ndefault = \"steer\"\n")?;
    assert_eq!(answers(&lab, 8082), None, "the file overrules what is built in");
    assert!(lab.packets("pass_owner_policy")? >= 1);
    assert_eq!(answers(&lab, 8080).as_deref(), Some("rootlessport"), "the blunt default");
    configure("owners = [{ name = \"rootlessport\", uid = \"any\", policy = \"steer\" }]\n")?;
    assert_eq!(answers(&lab, 8080).as_deref(), Some("rootlessport"), "whatever the user");
    assert_eq!(answers(&lab, 8081).as_deref(), Some("rootlessport"), "whatever the user");
    Ok(())
}
