//! Runs a guest: its lives, vCPU threads, the main loop, the control socket, counters, and the end.

pub(crate) mod control;
mod keyboard;
mod life;
mod main_loop;
mod program;
mod resources;
mod stats;
mod stop;
mod vcpu;
mod vm;

pub(crate) use program::run;
pub(crate) use stop::Outcome;
