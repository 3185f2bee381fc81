//! The verdict: one pure function, compiled into the program and into these tests.

mod everywhere;
mod generated;
mod worlds;
