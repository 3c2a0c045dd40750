//! Uses of devices by the host itself, which would end if the host lost the devices.

mod consoles;
mod dependents;
mod display;
mod holder;
mod layers;
mod network;
mod processes;
mod storage;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::{O_EXCL, O_NONBLOCK};
use vfio_passthrough::PciAddress;

pub(crate) use dependents::virtual_functions;
pub(crate) use holder::{Holder, summary};
pub(crate) use processes::Opened;

use super::tree::Tree;

/// All uses of devices by the host that files of the kernel show, except open nodes.
pub(crate) fn holders(tree: &Tree) -> Vec<Holder> {
    let mut holders = storage::holders(tree);
    holders.extend(network::holders(tree));
    holders.extend(display::holders(tree));
    holders.extend(consoles::holders(tree));
    holders.extend(dependents::holders(tree));
    holders.retain(|holder| !holder.devices.is_empty());
    holders
}

/// The uses of a device, and the commands that end them. Beside those of `known`, a block device
/// that cannot be opened exclusively is in use: a file system of another mount namespace, a ZFS
/// pool and a target have their disks open so.
pub(crate) fn uses(
    tree: &Tree,
    known: &[Holder],
    address: PciAddress,
    mut is_claimed: impl FnMut(&Path) -> bool,
) -> Option<(String, Option<String>)> {
    // What claims a disk is known already if another use was found.
    summary(known, address).or_else(|| {
        let nodes = storage::nodes(tree, address).into_iter();
        let claimed = nodes.filter(|node| is_claimed(&tree.path(node)));
        let claims: Vec<_> = claimed.map(|node| storage::claimed(tree, &node, address)).collect();
        summary(&claims, address)
    })
}

/// Whether something has a block device open exclusively: then O_EXCL is refused with EBUSY
/// (open(2)). O_NONBLOCK leaves the tray of a drive as it is.
pub(crate) fn is_claimed(disk: &Path) -> bool {
    let mut options = File::options();
    let opened = options.read(true).custom_flags(O_EXCL | O_NONBLOCK).open(disk);
    opened.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
}

#[cfg(test)]
mod tests;
