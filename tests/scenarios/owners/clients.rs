//! Clients on Windows that ask who serves.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use wsl_mirror_lab::{Lab, loopback, pace};

/// Who answers Windows on this TCP port; `None` if nobody does.
pub fn answers(lab: &Lab, port: u16) -> Option<String> {
    let limit = pace::limit(Duration::from_millis(600));
    lab.windows().enter(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(loopback(port)), limit).ok()?;
        stream.set_read_timeout(Some(limit)).ok()?;
        let mut name = String::new();
        stream.read_to_string(&mut name).ok()?;
        Some(name).filter(|name| !name.is_empty())
    })
}

/// Who answers Windows on this UDP port.
pub fn answers_udp(lab: &Lab, port: u16) -> Option<String> {
    let limit = pace::limit(Duration::from_millis(600));
    lab.windows().enter(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
        socket.set_read_timeout(Some(limit)).ok()?;
        socket.connect(SocketAddr::from(loopback(port))).ok()?;
        socket.send(b"hello").ok()?;
        let mut name = [0; 64];
        let length = socket.recv(&mut name).ok()?;
        Some(String::from_utf8_lossy(&name[..length]).into_owned())
    })
}
