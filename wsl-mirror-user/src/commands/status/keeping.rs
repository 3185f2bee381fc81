//! Whether connections within Linux stay on `lo`, as `status` says it.

use serde::Serialize;

use crate::inspect::keeping::Keeping;

/// In the JSON.
#[derive(Debug, Serialize)]
pub struct KeepOnLo {
    kept: bool,
    /// The first and the last port of the block that Windows has leased to Linux' clients, if they stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    leased: Option<[u16; 2]>,
    /// The bit of clients' `SO_MARK`, if they stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    bit: Option<u32>,
    /// Why they do not stay, in words.
    obstacle: Option<String>,
}

impl From<&Keeping> for KeepOnLo {
    fn from(keeping: &Keeping) -> Self {
        match keeping {
            Keeping::OnLo(kept) => Self {
                kept: true,
                leased: Some([*kept.ports.start(), *kept.ports.end()]),
                bit: Some(kept.bit),
                obstacle: None,
            },
            Keeping::ByWindows(why) => {
                Self { kept: false, leased: None, bit: None, obstacle: Some(why.clone()) }
            }
        }
    }
}

/// For people.
pub fn text(keeping: &Keeping) -> String {
    match keeping {
        Keeping::OnLo(kept) => format!(
            "lo       connections within Linux stay on lo (ports {}-{}, mark {:#x})",
            kept.ports.start(),
            kept.ports.end(),
            kept.bit
        ),
        Keeping::ByWindows(why) => {
            format!("lo       connections within Linux go by Windows:\n         {why}")
        }
    }
}
