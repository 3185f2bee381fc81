//! The lab: mirrored mode in network namespaces, Windows included.
