//! Our maps, typed.

mod definitions;
mod mapped;
mod traffic;
mod typed;

pub use self::definitions::{
    LOCAL_ADDRESSES, OWNERS, PORT_POLICY, PolicyMap, SETTINGS, SOCKET_OWNER, SOCKET_TARGET, SocketOwners,
    SocketTargets,
};
pub use self::traffic::{PortTraffic, clients, port_traffic, verdicts};
pub use self::typed::{Access, Definition};
