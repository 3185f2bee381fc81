//! What the README shows people who look inside with bpftool.

use anyhow::{Result, ensure};
use wsl_mirror_lab::{Lab, loopback, servers, tcp};

use crate::{
    bpf,
    guest::{STEER, exempt, is_steered, ok, ours, published, sh},
};

const PINS: &str = "/sys/fs/bpf/wsl-mirror/v1";

#[test]
fn maps_are_readable_by_name() -> Result<()> {
    let lab = Lab::builder().configuration(STEER).build()?;
    ok(&lab, &["load"])?;
    ok(&lab, &["exempt", "add", "8080/tcp"])?;
    let _server = servers::tcp_echo(lab.guest(), loopback(8100))?;
    assert_eq!(tcp::Client::new(lab.windows(), loopback(8100)).echo(b"hello"), Ok(b"hello".to_vec()));
    for (map, words) in [
        ("SETTINGS", ["\"mark\": 4096", "\"ifindex\": "]),
        ("PORT_POLICY", ["\"port\": 8080", "\"cli\": 1"]),
        ("VERDICTS", ["\"steer_new\": 1", "\"pass_exempt\": 0"]),
        ("OWNERS", ["\"uid\": 0", "\"policy\": 2"]),
        ("PORT_STATS", ["\"port\": 8100", "\"steered_flows\": 1"]),
        ("FLOWS", ["\"server_port\": 8100", "\"client\": [127,0,0,1"]),
    ] {
        let dump = sh(&lab, &format!("bpftool map dump pinned {PINS}/{map}"))?;
        for word in words {
            ensure!(dump.contains(word), "no {word} in {map}:\n{dump}");
        }
    }
    let (program, _) = ours(&lab)?;
    let shown = sh(&lab, &format!("bpftool prog show pinned {PINS}/program"))?;
    ensure!(shown.starts_with(&format!("{program}: sched_cls  name wsl_mirror  tag ")), "{shown}");
    // How old ever bpftool is, it lists the link; 7.1 has no name for its type.
    if bpf::has_tcx(&lab)? {
        let links = sh(&lab, "bpftool link show")?;
        ensure!(links.contains(&format!("prog {program}")), "{links}");
    }
    Ok(())
}

#[test]
fn an_exemption_can_be_written_by_hand() -> Result<()> {
    let lab = published()?;
    ok(&lab, &["load"])?;
    assert!(is_steered(&lab, 8080));
    sh(&lab, &format!("bpftool map update pinned {PINS}/PORT_POLICY key hex 06 00 90 1f value hex 01 00"))?;
    assert_eq!(exempt(&lab)?, ["8080/tcp"]);
    assert!(!is_steered(&lab, 8080));
    ok(&lab, &["exempt", "del", "8080/tcp"])?;
    assert!(is_steered(&lab, 8080));
    lab.keep();
    Ok(())
}
