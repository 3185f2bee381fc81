//! What user space may read from maps and write into them.

use super::{
    CarriedDatagram, ClientCounts, DirectFlow, DirectFlowKey, FragmentKey, LocalAddresses, Owner,
    OwnerPolicy, PortKey, PortPackets, PortPolicy, PortStats, Settings, Target, Translations, Verdicts,
};

// SAFETY: `repr(C)`, integers only, no padding, every bit pattern is a value.
unsafe impl aya::Pod for Settings {}
// SAFETY: as above.
unsafe impl aya::Pod for PortKey {}
// SAFETY: as above.
unsafe impl aya::Pod for PortPolicy {}
// SAFETY: as above.
unsafe impl aya::Pod for PortStats {}
// SAFETY: as above.
unsafe impl aya::Pod for Owner {}
// SAFETY: as above.
unsafe impl aya::Pod for OwnerPolicy {}
// SAFETY: as above.
unsafe impl aya::Pod for FragmentKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Verdicts {}
// SAFETY: as above.
unsafe impl aya::Pod for CarriedDatagram {}
// SAFETY: as above.
unsafe impl aya::Pod for DirectFlow {}
// SAFETY: as above.
unsafe impl aya::Pod for DirectFlowKey {}
// SAFETY: as above.
unsafe impl aya::Pod for PortPackets {}
// SAFETY: as above.
unsafe impl aya::Pod for Target {}
// SAFETY: as above.
unsafe impl aya::Pod for Translations {}
// SAFETY: as above.
unsafe impl aya::Pod for ClientCounts {}
// SAFETY: as above.
unsafe impl aya::Pod for LocalAddresses {}
