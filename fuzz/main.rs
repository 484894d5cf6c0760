//! libFuzzer around the functions of `ringx::fuzz`; built and run by scripts/fuzz. RINGX_FUZZ names the
//! function, the arguments are libFuzzer's.
#![no_main]

use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use ringx::fuzz::{TARGETS, Target, target};

static CHOSEN: OnceLock<&Target> = OnceLock::new();

fn choose() -> &'static Target {
    let name = std::env::var("RINGX_FUZZ").unwrap_or_default();
    target(&name).unwrap_or_else(|| {
        for target in TARGETS {
            println!("{}", target.name);
        }
        std::process::exit(if name.is_empty() { 0 } else { 2 })
    })
}

fuzz_target!(
    init: CHOSEN.get_or_init(choose),
    |data: &[u8]| (CHOSEN.get_or_init(choose).run)(data)
);

/// Takes libc's place: a configuration made of random bytes names hosts, and nobody shall be asked for
/// them. `EAI_NONAME`, always.
#[unsafe(no_mangle)]
extern "C" fn getaddrinfo(
    _node: *const c_char,
    _service: *const c_char,
    _hints: *const c_void,
    _found: *mut *mut c_void,
) -> c_int {
    -2
}
