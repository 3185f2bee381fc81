//! The program behind `cargo xtask`; see the library.

fn main() -> xtask::ExitCode {
    xtask::main()
}
