//! Control of a running VM by signals and by the socket of `--control`.

mod client;
mod configuration;
mod guest;
mod http;
mod messages;
mod plug;
mod received;
mod server;
mod table;

pub(crate) use client::stats;
pub(crate) use configuration::{Configuration, DeviceInfo};
pub(crate) use guest::{Control, Life};
pub(crate) use plug::{add, remove};
pub(crate) use server::Server;

#[cfg(test)]
mod tests;
