//! `cargo lab bench`
use clap::Args;
use lab::{Error};
#[derive(Args)]
pub struct Arguments {
}
pub fn bench(_arguments: &Arguments) -> Result<bool, Error> { Ok(true) }
