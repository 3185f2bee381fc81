//! A port is steered because of who serves it: whose socket it is that the stack is going to choose.
//!
//! Windows' packets to any of these ports are caught by an engine's rule, without an engine ([`nat::trap`]): so a port
//! answers exactly if it is steered, and says who answered. [`Sockets`] play who serves.

mod existing;
mod hooks;
mod served;

use wsl_mirror_lab::{
    Lab,
    checks::{OrPanic as _, load},
    nat,
};

/// A lab with the trap, and wsl-mirror loaded.
#[track_caller]
fn loaded() -> Lab {
    let lab = Lab::builder().build().or_panic();
    nat::trap(lab.guest()).or_panic();
    load(&lab);
    lab
}
