//! Whatever a configuration file says, it is taken or refused with a sentence; and what `serve` takes, the forgiving
//! reader of the stdin/stdout form takes for the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_proxy::fuzzing::config;

fuzz_target!(|text: &str| {
    let (strict, lenient) = (config(text, true), config(text, false));
    for refusal in [&strict, &lenient]
        .into_iter()
        .filter_map(|read| read.as_ref().err())
    {
        assert!(refusal.starts_with("config.json: "), "{refusal}");
    }
    if strict.is_ok() {
        assert_eq!(strict, lenient);
    }
});
