//! Our maps, typed.

mod definitions;
mod mapped;
mod traffic;
mod typed;

pub use self::definitions::{OWNERS, PORT_POLICY, PolicyMap, SETTINGS, SOCKET_OWNER, SocketOwners};
pub use self::traffic::{PortTraffic, port_traffic, verdicts};
pub use self::typed::{Access, Definition};
