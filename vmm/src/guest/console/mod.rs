//! The guest's serial port on this process's stdin and stdout.

mod input;
mod output;
mod terminal;

pub(crate) use input::{Input, Read};
pub(crate) use output::{Output, Pending};
pub(crate) use terminal::RawTerminal;
