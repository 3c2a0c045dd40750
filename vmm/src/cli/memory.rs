//! `--memory`: the size of RAM and the kind of its pages.

use std::str::FromStr;

use thiserror::Error;

use crate::config::{HugePages, Memory, MemorySize};

/// The minimum: Linux does not boot with less.
const LEAST: u64 = 64 << 20;
/// A size is a multiple of a 2 MiB page.
const UNIT: u64 = 2 << 20;

/// A value of `--memory` that is not valid.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum MemoryError {
    /// The size is not valid.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The size is missing.
    #[error("no size: give a size, or size=SIZE")]
    NoSize,
    /// The option does not exist.
    #[error(
        "unknown option '{0}'\n  \
         the options are size=SIZE, hugepages=2M|1G, thp=on|off, prefault=on|off, shared=on|off"
    )]
    UnknownOption(String),
    /// The option does not accept the value.
    #[error("{option}={value}: the value must be {can}")]
    Value {
        option: &'static str,
        /// The given value.
        value: String,
        /// The accepted values.
        can: &'static str,
    },
    /// An option occurs twice.
    #[error("{0}: given twice")]
    Twice(&'static str),
    /// The size is not a multiple of the page size.
    #[error("{size}: not a multiple of {page}, the size of its pages (hugepages={page})")]
    NotWhole {
        /// The given size.
        size: MemorySize,
        /// The page size.
        page: HugePages,
    },
    /// `hugepages` and `thp=on` exclude each other.
    #[error(
        "hugepages and thp=on exclude each other: reserved huge pages are already huge\n  \
         remove one of the two options"
    )]
    HugeTwice,
}

/// The options parsed so far; none may occur twice.
#[derive(Default)]
struct Options {
    size: Option<MemorySize>,
    hugepages: Option<HugePages>,
    thp: Option<bool>,
    prefault: Option<bool>,
    shared: Option<bool>,
}

impl Options {
    fn take(&mut self, word: &str) -> Result<(), MemoryError> {
        let (name, value) = word.split_once('=').unwrap_or(("size", word));
        match name {
            "size" => set("size", &mut self.size, value.parse()?),
            "hugepages" => set("hugepages", &mut self.hugepages, hugepages(value)?),
            "thp" => set("thp", &mut self.thp, switch("thp", value)?),
            "prefault" => set("prefault", &mut self.prefault, switch("prefault", value)?),
            "shared" => set("shared", &mut self.shared, switch("shared", value)?),
            _ => Err(MemoryError::UnknownOption(word.to_owned())),
        }
    }
}

fn set<T>(name: &'static str, option: &mut Option<T>, value: T) -> Result<(), MemoryError> {
    match option.replace(value) {
        Some(_) => Err(MemoryError::Twice(name)),
        None => Ok(()),
    }
}

fn hugepages(value: &str) -> Result<HugePages, MemoryError> {
    match value.to_ascii_uppercase().as_str() {
        "2M" | "2MIB" => Ok(HugePages::Size2M),
        "1G" | "1GIB" => Ok(HugePages::Size1G),
        _ => Err(MemoryError::Value {
            option: "hugepages",
            value: value.to_owned(),
            can: "2M or 1G",
        }),
    }
}

fn switch(option: &'static str, value: &str) -> Result<bool, MemoryError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(MemoryError::Value { option, value: value.to_owned(), can: "on or off" }),
    }
}

impl FromStr for Memory {
    type Err = MemoryError;

    fn from_str(text: &str) -> Result<Self, MemoryError> {
        let mut options = Options::default();
        text.split(',').try_for_each(|word| options.take(word))?;
        let memory = Self {
            size: options.size.ok_or(MemoryError::NoSize)?,
            hugepages: options.hugepages,
            thp: options.thp,
            prefault: options.prefault,
            shared: options.shared.unwrap_or(false),
        };
        match memory.hugepages {
            Some(_) if memory.thp == Some(true) => Err(MemoryError::HugeTwice),
            Some(page) if memory.bytes().checked_rem(page.bytes()) != Some(0) => {
                Err(MemoryError::NotWhole { size: memory.size, page })
            }
            _ => Ok(memory),
        }
    }
}

/// A size that is not valid.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum SizeError {
    /// The text is not digits and a suffix.
    #[error("not a size: give a number with K, M, G or T, such as 512M or 4G")]
    NotANumber,
    /// The size does not fit in 64 bits.
    #[error("the size does not fit in 64 bits")]
    TooLarge,
    /// The size is below the minimum.
    #[error("too small: a guest needs at least 64M")]
    TooSmall,
    /// The size is not a multiple of 2 MiB.
    #[error("not a multiple of 2M, the size of a huge page")]
    NotHugePages,
}

impl FromStr for MemorySize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        match bytes(text)? {
            bytes if bytes < LEAST => Err(SizeError::TooSmall),
            bytes if bytes % UNIT != 0 => Err(SizeError::NotHugePages),
            bytes => Ok(Self(bytes)),
        }
    }
}

/// The bytes of a size: a number, with or without a suffix.
pub(super) fn bytes(text: &str) -> Result<u64, SizeError> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text.strip_prefix(digits).unwrap_or_default();
    let shift = match suffix.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(SizeError::NotANumber),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit()) {
        return Err(SizeError::NotANumber);
    }
    let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge)?;
    number.checked_mul(1 << shift).ok_or(SizeError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_sizes_and_refuses_invalid_ones() {
        let cases = [
            ("512M", Ok(MemorySize(512 << 20))),
            ("4G", Ok(MemorySize(4 << 30))),
            ("4gib", Ok(MemorySize(4 << 30))),
            ("67108864", Ok(MemorySize(64 << 20))),
            ("0", Err(SizeError::TooSmall)),
            ("63M", Err(SizeError::TooSmall)),
            ("65537K", Err(SizeError::NotHugePages)),
            ("", Err(SizeError::NotANumber)),
            ("M", Err(SizeError::NotANumber)),
            ("-1G", Err(SizeError::NotANumber)),
            ("1.5G", Err(SizeError::NotANumber)),
            ("lots", Err(SizeError::NotANumber)),
            ("512X", Err(SizeError::NotANumber)),
            ("99999999999T", Err(SizeError::TooLarge)),
            ("99999999999999999999999", Err(SizeError::TooLarge)),
        ];
        cases.into_iter().for_each(|(text, size)| assert_eq!(text.parse(), size, "{text:?}"));
    }

    fn parsed(text: &str) -> Result<Memory, MemoryError> {
        text.parse()
    }

    #[test]
    fn a_size_alone_sets_no_option() {
        let plain = Memory { size: MemorySize(4 << 30), ..Memory::default() };
        assert_eq!(parsed("4G"), Ok(plain));
        assert_eq!(parsed("size=4G"), Ok(plain));
        assert_eq!(parsed("64Q"), Err(SizeError::NotANumber.into()));
    }

    #[test]
    fn accepts_options_in_any_order_and_formats_them_as_accepted() {
        let all = Memory {
            size: MemorySize(64 << 30),
            hugepages: Some(HugePages::Size1G),
            thp: None,
            prefault: Some(true),
            shared: true,
        };
        assert_eq!(parsed("size=64G,hugepages=1G,prefault=on,shared=on"), Ok(all));
        assert_eq!(parsed("shared=on,prefault=on,hugepages=1gib,64G"), Ok(all));
        assert_eq!(all.page(), 1 << 30);
        for text in
            ["65536M,hugepages=1G,prefault=on,shared=on", "512M", "512M,thp=off,prefault=off"]
        {
            assert_eq!(parsed(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn names_what_is_wrong_and_what_is_accepted() {
        let cases = [
            ("", "not a size: give a number"),
            ("hugepages=2M", "no size: give a size"),
            ("4G,hugepages=4K", "hugepages=4K: the value must be 2M or 1G"),
            ("4G,prefault=yes", "prefault=yes: the value must be on or off"),
            (
                "4G,huge=on",
                "unknown option 'huge=on'\n  the options are size=SIZE, hugepages=2M|1G",
            ),
            ("4G,size=4G", "size: given twice"),
            ("4G,thp=on,thp=on", "thp: given twice"),
            ("1536M,hugepages=1G", "1536M: not a multiple of 1G"),
            ("4G,hugepages=2M,thp=on", "already huge"),
            ("4G,", "not a size: give a number"),
        ];
        for (text, part) in cases {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
        assert!(parsed("4G,hugepages=2M,thp=off").is_ok());
    }
}
