//! Uses of devices by the host itself, which would end if the host lost the devices.

mod consoles;
mod dependents;
mod display;
mod holder;
mod layers;
mod network;
pub(crate) mod processes;
mod storage;

use std::path::PathBuf;

use vfio_passthrough::PciAddress;

pub(crate) use holder::{Holder, summary};

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

/// Uses of a device whose block devices cannot be opened exclusively. A file system of another
/// mount namespace, a ZFS pool and a target have their disks open so.
pub(crate) fn exclusive(
    tree: &Tree,
    address: PciAddress,
    mut is_claimed: impl FnMut(&PathBuf) -> bool,
) -> Vec<Holder> {
    let nodes = storage::nodes(tree, address).into_iter();
    let claimed = nodes.filter(|node| is_claimed(&tree.path(node)));
    claimed.map(|node| storage::claimed(tree, &node, address)).collect()
}

#[cfg(test)]
mod tests;
