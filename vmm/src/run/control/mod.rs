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

use std::fs::File;

use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::Sysfs;

use messages::{AddRequest, RemoveRequest};

pub(crate) use client::stats;
pub(crate) use configuration::{Configuration, DeviceInfo};
pub(crate) use guest::{Control, Life};
pub(crate) use plug::{add, remove};
pub(crate) use server::Server;

/// Reads a request as the socket's thread does, up to where it needs a guest. Returns the devices of
/// a valid addition, with what the client says of sysfs.
pub fn read_request(bytes: &[u8], files: Vec<File>) -> Option<Vec<(PciAddress, Sysfs)>> {
    let asked = http::read(bytes).ok()?.ok()?;
    let _ = RemoveRequest::parse(&asked.body).and_then(|request| request.device());
    let addition = AddRequest::parse(&asked.body).and_then(|request| request.take(files)).ok()?;
    Some(addition.devices.into_iter().map(|device| (device.address, device.sysfs)).collect())
}

#[cfg(test)]
mod tests;
