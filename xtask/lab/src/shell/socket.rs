//! How the command `windows` in the shell reaches the lab, which belongs to the shell's parent: a Unix socket.
//!
//! A request is an order's words, one a line. The answer is a line `ok` or `error`, and a text.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
};

use anyhow::{Context as _, Result, bail};

use super::order::Order;

/// Answers until `stop` is called: every request with what `carry_out` says.
pub(super) fn serve(listener: &UnixListener, carry_out: impl Fn(&Order) -> Result<String>) {
    while let Ok((mut stream, _)) = listener.accept() {
        let mut request = String::new();
        // A client that leaves early misses its answer.
        if stream.read_to_string(&mut request).is_ok() {
            let _ = stream.write_all(answer(&request, &carry_out).as_bytes());
        }
    }
}

/// Ends `serve`: a listener that is shut down accepts nothing more.
pub(super) fn stop(listener: &UnixListener) -> Result<()> {
    rustix::net::shutdown(listener, rustix::net::Shutdown::Both).context("closing the shell's socket")
}

fn answer(request: &str, carry_out: impl Fn(&Order) -> Result<String>) -> String {
    let done = match Order::parse(request.lines()) {
        Ok(order) => carry_out(&order),
        Err((text, _)) => Err(anyhow::anyhow!(text)),
    };
    match done {
        Ok(text) => format!("ok\n{text}"),
        Err(error) => format!("error\n{error:#}\n"),
    }
}

/// Sends an order to the lab at `path`; gives what the user reads.
pub(super) fn send(path: &Path, words: &[String]) -> Result<String> {
    let mut stream =
        UnixStream::connect(path).context("reaching the lab: is this a shell of `cargo xtask`?")?;
    stream.write_all(words.join("\n").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once('\n') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some((_, text)) => bail!("{}", text.trim_end()),
        None => bail!("the lab has ended"),
    }
}

#[cfg(test)]
mod tests {
    use std::{env, process, thread};

    use super::*;

    #[test]
    fn an_order_arrives_and_its_answer_comes_back() {
        let path = env::temp_dir().join(format!("wsl-mirror-shell-{}", process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                serve(&listener, |order| match order {
                    Order::Dropped => Ok("none\n".to_owned()),
                    other => bail!("{other:?}"),
                });
            });
            let send = |words: &[&str]| {
                let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
                send(&path, &words).map_err(|error| error.to_string())
            };
            assert_eq!(send(&["dropped"]), Ok("none\n".to_owned()));
            assert_eq!(send(&["forget", "flows"]), Err("Forget(Flows)".to_owned()));
            assert!(send(&["network"]).is_err());
            stop(&listener).unwrap();
        });
        std::fs::remove_file(&path).unwrap();
    }
}
