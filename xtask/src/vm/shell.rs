//! A prompt in a virtual machine, in the lab.

use std::{fmt::Write as _, path::Path, process::Stdio};

use anyhow::Result;

use super::{initramfs::quoted, kernels::Kernel, machine::End, room::Room, run::environment};
use crate::test::Verdict;

/// Runs `program` in a machine, with this terminal as its own. The arguments say how its Windows starts.
pub(super) fn shell(kernel: &Kernel, product: &Path, program: &Path, arguments: &[String]) -> Result<bool> {
    let room = Room::new(product)?;
    let accelerator = room.accelerator(std::slice::from_ref(kernel))?;
    let mut script = environment(product, accelerator.patience());
    let (rows, columns) = size();
    let arguments = arguments.iter().fold(String::new(), |line, argument| line + " " + &quoted(argument));
    let _ = write!(
        script,
        "stty rows {rows} cols {columns} 2>/dev/null\nexport TERM={}\nexec {} shell{}\n",
        quoted(&std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned())),
        quoted(&program.to_string_lossy()),
        arguments
    );
    let machine = room.machine(kernel, "shell", &script, accelerator)?;
    eprintln!("Linux {} starts; it takes some seconds. `exit` ends it, Ctrl-A x cuts it off.", kernel.name);
    match machine.run_on_this_terminal()? {
        End::Exit(_) => {
            room.leave(Verdict::Ok);
            Ok(true)
        }
        End::Broken(text) => {
            eprintln!("xtask: {text}");
            room.leave(Verdict::Failed);
            Ok(false)
        }
    }
}

/// Rows and columns of this terminal, which a virtual console does not learn by itself.
fn size() -> (String, String) {
    let output = std::process::Command::new("stty").arg("size").stdin(Stdio::inherit()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut words = text.split_whitespace();
    (words.next().unwrap_or("24").to_owned(), words.next().unwrap_or("80").to_owned())
}
