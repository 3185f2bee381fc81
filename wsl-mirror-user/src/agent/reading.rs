//! Packet filters, read beside everything else: an interface that comes does not wait for other people's programs.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use tokio::task::JoinHandle;

use crate::host::firewall::{self, Firewall};

/// A reading that is at work, or none: then it never ends.
#[derive(Default)]
pub struct Reading(Option<JoinHandle<Firewall>>);

impl Reading {
    /// Begins one.
    pub fn begin(&mut self) {
        self.0 = Some(tokio::task::spawn_blocking(firewall::read));
    }
}

impl Future for Reading {
    type Output = Result<Firewall>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Firewall>> {
        let Some(reading) = &mut self.0 else { return Poll::Pending };
        let read = std::task::ready!(Pin::new(reading).poll(context));
        self.0 = None;
        Poll::Ready(read.context("reading the packet filters broke off"))
    }
}
