//! A use of devices by the host.

use std::collections::BTreeSet;

use vfio_passthrough::PciAddress;

/// A use that would end if the host lost the devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The description of the use.
    pub(crate) what: String,
    /// The command that ends the use, if one is known.
    pub(crate) remedy: Option<String>,
    /// The devices below the use, and their upstream bridges.
    pub(crate) devices: BTreeSet<PciAddress>,
}

impl Holder {
    /// A use of `devices`.
    pub(super) fn new(what: impl Into<String>, devices: BTreeSet<PciAddress>) -> Self {
        Self { what: what.into(), remedy: None, devices }
    }

    /// Adds the command that ends the use.
    pub(super) fn ends_by(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// More uses of one device are counted, not listed: a host of containers has hundreds of mounts.
const MOST_LISTED: usize = 6;

/// The uses of a device, and the commands that end them, each once.
pub(crate) fn summary<'a>(
    holders: impl IntoIterator<Item = &'a Holder>,
    address: PciAddress,
) -> Option<(String, Option<String>)> {
    let ours = holders.into_iter().filter(|holder| holder.devices.contains(&address));
    let (mut what, mut remedies) = (Vec::new(), Vec::new());
    for holder in ours {
        push_new(&mut what, &holder.what);
        holder.remedy.iter().for_each(|remedy| push_new(&mut remedies, remedy));
    }
    let more = what.len().saturating_sub(MOST_LISTED);
    what.truncate(MOST_LISTED);
    remedies.truncate(MOST_LISTED);
    let mut text = what.join(", ");
    if more > 0 {
        text += &format!(" and {more} more uses");
    }
    (!what.is_empty()).then(|| (text, (!remedies.is_empty()).then(|| remedies.join("; "))))
}

fn push_new<'a>(list: &mut Vec<&'a str>, text: &'a str) {
    if !list.contains(&text) {
        list.push(text);
    }
}
