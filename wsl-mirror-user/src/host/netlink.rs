//! Conversations with the kernel over rtnetlink.

use std::future::Future;

use anyhow::{Result, bail};

/// Runs one to its end.
pub fn talk<T, F: Future<Output = Result<T>>>(talk: impl FnOnce(rtnetlink::Handle) -> F) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = talk(handle.clone()).await;
        // When a connection breaks, its answers end as if they were complete; `handle` keeps it from ending well.
        let broke = connection.is_finished();
        connection.abort();
        drop(handle);
        if broke {
            bail!("the netlink connection broke");
        }
        result
    })
}
