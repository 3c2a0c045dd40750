//! What is done with a model, and how the result is judged.

use std::path::PathBuf;

use guest::Report;
use lab::{Error, L1, Monitor};

type IsRight = dyn Fn(&mut L1, usize, &[Report]) -> Result<bool, Error>;
type Act = dyn Fn(&mut Monitor, &Place, &Report) -> Result<(), Error>;

/// What is done with a model, and how the result is judged.
pub struct Case {
    /// The steps of the guest.
    pub steps: String,
    /// What the table has if it works.
    pub data: &'static str,
    /// Whether the data is right.
    pub is_right: Box<IsRight>,
    /// What the host does when the guest reports something.
    pub act: Box<Act>,
    /// The guest's kernel panics at the end.
    pub panics: bool,
    /// The guest has the small kernel.
    pub small: bool,
    /// What the VMM logs.
    pub logs: Option<&'static str>,
}

/// A model's number, and the file for what QEMU writes of it.
pub struct Place {
    pub index: usize,
    pub output: PathBuf,
}

impl Place {
    /// QEMU's ID of the model.
    pub fn id(&self) -> String {
        format!("model{}", self.index)
    }
}

impl Case {
    pub fn new(
        steps: &str,
        data: &'static str,
        is_right: impl Fn(&mut L1, usize, &[Report]) -> Result<bool, Error> + 'static,
    ) -> Self {
        let (steps, is_right) = (steps.to_owned(), Box::new(is_right));
        let act = Box::new(|_: &mut Monitor, _: &Place, _: &Report| Ok(()));
        Self { steps, data, is_right, act, panics: false, small: false, logs: None }
    }

    pub fn act(
        self,
        act: impl Fn(&mut Monitor, &Place, &Report) -> Result<(), Error> + 'static,
    ) -> Self {
        Self { act: Box::new(act), ..self }
    }

    /// Acts on each report of the guest once.
    pub fn along(&self, place: Place) -> impl FnMut(&mut Monitor, &str) -> Result<(), Error> {
        let mut seen = 0;
        move |monitor, console| {
            let reports = guest::reports(console);
            let new = reports.get(seen..).unwrap_or_default();
            seen = reports.len();
            new.iter().try_for_each(|report| (self.act)(monitor, &place, report))
        }
    }
}

/// The result of a trial; `None` if it failed.
pub fn result<'a>(reports: &'a [Report], trial: &str) -> Option<&'a str> {
    reports.iter().find_map(|report| match report {
        Report::Trial { name, result } if name == trial => Some(result.as_str()),
        _ => None,
    })
}
