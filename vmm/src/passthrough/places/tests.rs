use super::*;
use crate::config::Passthrough;

/// A device as `--vfio` names it. `vf` before it makes it a virtual function.
fn candidate(text: &str) -> Candidate {
    let (is_virtual, text) = match text.strip_prefix("vf ") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let asked: Passthrough = text.parse().unwrap();
    let address = asked.path.unwrap().to_str().unwrap().parse().unwrap();
    Candidate { address, is_virtual, at: asked.at }
}

fn placed(texts: &[&str]) -> Result<Vec<String>, String> {
    let candidates: Vec<_> = texts.iter().map(|text| candidate(text)).collect();
    let places = places(&candidates, []).map_err(|error| error.to_string())?;
    Ok(places.iter().map(DevFn::to_string).collect())
}

#[test]
fn places_functions_by_their_devices() {
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &[]),
        (&["01:00.0", "02:00.0", "03:00.0"], &["01.0", "02.0", "03.0"]),
        // Functions of one device share a slot, and keep their numbers.
        (&["01:00.0", "01:00.1"], &["01.0", "01.1"]),
        (&["01:00.1", "02:00.0", "01:00.0"], &["01.1", "02.0", "01.0"]),
        (&["01:00.0", "01:00.7"], &["01.0", "01.7"]),
        // Without function 0, the lowest becomes function 0.
        (&["01:00.1"], &["01.0"]),
        (&["01:00.3", "01:00.1"], &["01.3", "01.0"]),
        // Other devices, buses and domains are other devices.
        (&["01:00.0", "01:01.0"], &["01.0", "02.0"]),
        (&["01:00.0", "0001:01:00.1"], &["01.0", "02.0"]),
        (&["01:00.0", "02:00.1"], &["01.0", "02.0"]),
        // Virtual functions have slots of their own, also beside their physical function.
        (&["vf 01:00.1", "vf 01:00.2"], &["01.0", "02.0"]),
        (&["01:00.0", "vf 01:00.1", "01:00.2"], &["01.0", "02.0", "01.2"]),
        (&["vf 01:00.3,at=04.0", "vf 01:00.4,at=04.1"], &["04.0", "04.1"]),
        (&["vf 01:00.3,at=04"], &["04.0"]),
        // What is asked for comes first: the others go around it.
        (&["01:00.0", "02:00.0,at=01"], &["02.0", "01.0"]),
        (&["01:00.0,at=1f.0", "02:00.0,at=1f.7"], &["1f.0", "1f.7"]),
        (&["01:00.1,at=05.0", "01:00.0,at=05.1"], &["05.0", "05.1"]),
        // A slot without a function, and functions without a place, follow the same rule.
        (&["01:00.0,at=05", "01:00.1"], &["05.0", "05.1"]),
        (&["01:00.0", "01:00.1,at=05.1"], &["05.0", "05.1"]),
        (&["01:00.0,at=05", "01:00.1,at=05"], &["05.0", "05.1"]),
        (&["01:00.1,at=05", "01:00.2,at=05"], &["05.0", "05.2"]),
        (&["01:00.2,at=05.0", "01:00.1"], &["05.0", "05.1"]),
        (&["01:00.0,at=05", "01:00.1,at=06"], &["05.0", "06.0"]),
    ];
    for (asked, expected) in cases {
        let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(placed(asked), Ok(expected), "{asked:?}");
    }
}

#[test]
fn names_both_functions_of_a_place_that_is_taken_twice() {
    let remedy = "\n  give one of them another place with: --vfio ADDRESS,at=SLOT.FUNCTION";
    let cases: &[(&[&str], &str)] = &[
        (&["01:00.0,at=05", "02:00.0,at=05"], "05.0"),
        (&["01:00.0,at=05.0", "02:00.0,at=05.0"], "05.0"),
        (&["01:00.0,at=06.3", "02:00.0,at=06.3", "03:00.0,at=06.0"], "06.3"),
    ];
    for (asked, place) in cases {
        let expected = format!(
            "--vfio 0000:02:00.0: place {place} of the guest's bus is already taken by \
             0000:01:00.0{remedy}"
        );
        assert_eq!(placed(asked), Err(expected), "{asked:?}");
    }
    let siblings = placed(&["01:00.0", "01:00.1,at=04.0"]).unwrap_err();
    assert!(siblings.contains("0000:01:00.0") && siblings.contains("0000:01:00.1"), "{siblings}");
}

#[test]
fn refuses_a_slot_without_function_0() {
    for asked in [&["01:00.1,at=05.1"][..], &["02:00.0", "01:00.1,at=05.1", "03:00.0,at=05.2"]] {
        let expected = "--vfio 0000:01:00.1: at 05.1 a guest does not find it, because its slot has \
                        no function 0 (PCI 3.0, 3.2.2.3.4)\n  \
                        put a function at 05.0 with: --vfio ADDRESS,at=05.0";
        assert_eq!(placed(asked), Err(expected.to_owned()), "{asked:?}");
    }
}

#[test]
fn has_31_slots_besides_the_host_bridge() {
    let texts: Vec<_> = (0..32).map(|bus| format!("{bus:02x}:00.0")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(placed(&texts[..31]).unwrap().last().unwrap(), "1f.0");
    let full = placed(&texts).unwrap_err();
    assert!(full.starts_with("--vfio 0000:1f:00.0: all slots of the guest's bus are taken"));
    // Eight functions of a device fit in the last slot.
    let last: Vec<_> = (0..8).map(|function| format!("40:00.{function}")).collect();
    let all: Vec<_> = texts[..30].iter().copied().chain(last.iter().map(String::as_str)).collect();
    assert_eq!(placed(&all).unwrap().last().unwrap(), "1f.7");
}
