//! The capability lists in the bytes of a config space. Nothing here is the library's, so that it
//! can be the judge of the library.

/// The end of the space that every function has.
pub const CONVENTIONAL: usize = 0x100;
/// The end of the space that a PCI Express function has.
pub const EXTENDED: usize = 0x1000;

/// The 16 bits at an offset; 0 after the end.
pub fn u16_at(config: &[u8], offset: usize) -> u16 {
    let bytes = config.get(offset..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

/// The 32 bits at an offset; 0 after the end.
pub fn u32_at(config: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(config, offset)) | u32::from(u16_at(config, offset + 2)) << 16
}

/// The byte at an offset; 0 after the end.
pub fn u8_at(config: &[u8], offset: usize) -> u8 {
    config.get(offset).copied().unwrap_or(0)
}

/// A capability: its ID and its offset. Extended ones are at 0x100 and above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    /// The offset of its header.
    pub at: usize,
    /// Its ID.
    pub id: u16,
}

/// The capabilities of both lists, each up to where it ends, loops or leads nowhere.
pub fn all(config: &[u8]) -> Vec<Capability> {
    let mut found = Vec::new();
    let has_list = u8_at(config, 6) & 0x10 != 0;
    let mut at = if has_list { usize::from(u8_at(config, 0x34) & !3) } else { 0 };
    while at >= 0x40 && at < config.len() && is_new(&found, at) {
        let [id, next] = u16_at(config, at).to_le_bytes();
        if id == 0xff {
            break;
        }
        found.push(Capability { at, id: id.into() });
        at = usize::from(next & !3);
    }
    let mut at = CONVENTIONAL;
    while at >= CONVENTIONAL && at < config.len() && is_new(&found, at) {
        let header = u32_at(config, at);
        if header == 0 || header == u32::MAX {
            break;
        }
        found.push(Capability { at, id: header as u16 });
        at = (header >> 20) as usize & !3;
    }
    found
}

fn is_new(found: &[Capability], at: usize) -> bool {
    !found.iter().any(|known| known.at == at)
}

/// The capability with this ID in the first list.
pub fn find(config: &[u8], id: u16) -> Option<usize> {
    let found = all(config).into_iter().find(|it| it.id == id && it.at < CONVENTIONAL);
    found.map(|capability| capability.at)
}
