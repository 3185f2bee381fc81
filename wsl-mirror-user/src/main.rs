//! wsl-mirror
fn main() {}
