//! One change of rules or routes, carried out over rtnetlink.

use std::fmt;

use anyhow::Result;
use rustix::io::Errno;

use crate::errors::Errors;
use crate::exit::{Exit, OrExit as _};
use crate::host::netlink;
use crate::host::routing::{Route, Rule};

/// A step towards the source alias' rules and route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add a rule behind those of its priority.
    AddRule(Rule),
    /// Remove a rule; of two equal ones, the first.
    RemoveRule(Rule),
    /// Add a route.
    AddRoute(Route),
    /// Remove a route.
    RemoveRoute(Route),
}

impl Change {
    /// Does it. What is to be removed may be gone already.
    pub fn carry_out(&self) -> Result<()> {
        let done = netlink::talk(|handle| async move {
            let gone = match self {
                // The kernel refuses a second equal rule only if it is asked to (`NLM_F_EXCL`).
                Self::AddRule(rule) => {
                    let mut request = handle.rule().add().replace();
                    *request.message_mut() = rule.message().clone();
                    return Ok(request.execute().await?);
                }
                Self::AddRoute(route) => return Ok(handle.route().add(route.0.clone()).execute().await?),
                Self::RemoveRule(rule) => {
                    (handle.rule().del(rule.message().clone()).execute().await, Errno::NOENT)
                }
                Self::RemoveRoute(route) => {
                    (handle.route().del(route.0.clone()).execute().await, Errno::SRCH)
                }
            };
            match gone {
                (Err(error), gone) if is(&error, gone) => Ok(()),
                (done, _) => Ok(done?),
            }
        });
        done.or_exit(Exit::Kernel, || format!("cannot {self}"))
    }

    /// What takes it back.
    pub fn reversed(self) -> Self {
        match self {
            Self::AddRule(rule) => Self::RemoveRule(rule),
            Self::RemoveRule(rule) => Self::AddRule(rule),
            Self::AddRoute(route) => Self::RemoveRoute(route),
            Self::RemoveRoute(route) => Self::AddRoute(route),
        }
    }
}

/// Does all of them. An error does not stop it. Gives whether there were any.
pub fn remove_all(removal: &[Change]) -> Result<bool> {
    let mut errors = Errors::default();
    for change in removal {
        errors.keep(change.carry_out());
    }
    errors.into_failure(Exit::Kernel, "could not be taken away")?;
    Ok(!removal.is_empty())
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddRule(rule) => write!(f, "add the policy route rule `{rule}`"),
            Self::RemoveRule(rule) => write!(f, "remove the policy route rule `{rule}`"),
            Self::AddRoute(route) => write!(f, "add the route `{route}`"),
            Self::RemoveRoute(route) => write!(f, "remove the route `{route}`"),
        }
    }
}

/// Whether the kernel answered with this error.
fn is(error: &rtnetlink::Error, wanted: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(error) if error.raw_code() == -wanted.raw_os_error())
}
