//! Finds what is missing for building or testing, and installs it.
//!
//! In rounds: the state of the machine is read, a plan is computed from it, the plan is carried out, and the
//! state is read again, because one step decides about the next (which LLVM the linker needs is known when
//! the compiler is there). It ends when nothing is missing or when a round has nothing to do.
//!
//! apt removes and downgrades nothing. Where it would have to, the tool is unpacked into the cache ([`unpacked`]).

mod apt;
mod command;
mod elf;
mod llvm;
mod machine;
mod needs;
mod perform;
mod plan;
mod programs;
mod state;
mod unpacked;

use std::fmt::Write as _;

use anyhow::{Result, bail};
use apt::Lists;
pub(crate) use command::Setup;
use machine::Machine;
pub(crate) use needs::Needs;
use plan::{Plan, Step, plan};
pub(crate) use programs::{busybox, environment, equip, program};
use state::State;
use wsl_mirror_toolchain::Toolchain;

/// How it came out.
pub(crate) enum Outcome {
    /// Nothing is missing any more.
    Ready(Box<Toolchain>),
    /// Something is, and what to do about it was printed.
    Missing,
}

/// More rounds than any machine needs: lists, compiler, linker, and one to see that all is well.
const ROUNDS: usize = 6;

/// Installs what is missing; silent and quick when nothing is.
///
/// # Errors
/// When a step fails. What cannot be installed from here is no error but [`Outcome::Missing`].
pub(crate) fn ensure(needs: Needs) -> Result<Outcome> {
    let machine = Machine::this();
    let mut lists = Lists::Found;
    let mut done: Vec<Step> = Vec::new();
    for _ in 0..ROUNDS {
        let state = State::read(&machine, needs, lists);
        if let (Ok(toolchain), []) = (&state.toolchain, &*state.missing_tools) {
            return Ok(Outcome::Ready(Box::new(toolchain.clone())));
        }
        let Plan { steps, by_hand } = plan(&state);
        // What a person has to do comes before minutes of work that would be of no use without it.
        if !by_hand.is_empty() || steps.is_empty() {
            eprint!("{}", missing(&state, &by_hand));
            return Ok(Outcome::Missing);
        }
        if let Some(again) = steps.iter().find(|step| done.contains(step)) {
            eprint!("{}", missing(&state, &[]));
            bail!("setup: `{again}` was done, and what it is there for is still missing");
        }
        for step in steps {
            if step == Step::UpdateLists {
                update_lists(&machine);
                lists = Lists::Updated;
                continue;
            }
            match perform::perform(&machine, &step) {
                Ok(()) => done.push(step),
                // The lists of packages may be older than what the mirror has.
                Err(error) if matches!(step, Step::Install { .. }) && lists == Lists::Found => {
                    eprintln!("setup: {error:#}\nsetup: trying again with new package lists");
                    update_lists(&machine);
                    lists = Lists::Updated;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    bail!("setup: something is still missing after {ROUNDS} rounds; `cargo xtask setup --dry-run` shows what")
}

/// Updates apt's lists. After a failure set-up goes on with the old ones: a single unreachable source fails the command.
fn update_lists(machine: &Machine) {
    if let Err(error) = perform::perform(machine, &Step::UpdateLists) {
        eprintln!("setup: {error:#}\nsetup: going on with the package lists that are there");
    }
}

/// What would be done, in words.
pub(crate) fn describe(needs: Needs) -> String {
    let state = State::read(&Machine::this(), needs, Lists::Found);
    let Plan { steps, by_hand } = plan(&state);
    if steps.is_empty() && by_hand.is_empty() {
        return "Nothing is missing.\n".to_owned();
    }
    let mut text = missing(&state, &by_hand);
    if !steps.is_empty() {
        text.push_str("Setup would:\n");
        for step in &steps {
            let _ = writeln!(text, "  {step}");
        }
        if steps.contains(&Step::UpdateLists) {
            text.push_str(
                "  then look again, install what the new lists have,\n  \
                 and unpack into the cache what apt cannot install beside the machine's packages\n",
            );
        }
    }
    if by_hand.is_empty() && state.toolchain.as_ref().is_err_and(|missing| missing.compiler.is_none()) {
        text.push_str("  and then bpf-linker for the LLVM of that compiler, unless there is one\n");
    }
    text
}

/// What is missing, and what a person can do about it.
fn missing(state: &State, by_hand: &[String]) -> String {
    let mut text = String::new();
    if let Err(missing) = &state.toolchain {
        let _ = writeln!(text, "Missing: {missing}");
    }
    if !state.missing_tools.is_empty() {
        let names: Vec<_> = state.missing_tools.iter().map(|tool| tool.program).collect();
        let _ = writeln!(text, "Missing: {}", names.join(", "));
    }
    if !by_hand.is_empty() {
        text.push_str("To be done by hand:\n");
        for line in by_hand.iter().flat_map(|text| text.lines()) {
            let _ = writeln!(text, "  {line}");
        }
    }
    text
}
