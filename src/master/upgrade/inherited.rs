//! What a process is started with by one that hands over to it: nginx's `NGINX` names the listening
//! sockets of an old binary, and `LISTEN_FDS` those of a service manager (`sd_listen_fds(3)`).

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::process::Pid;
use socket2::{Socket, Type};

use crate::error_log::{Errno, Level};
use crate::http::server::ListenAddress;
use crate::master::handover::{self, Handover};
use crate::os;

/// The listening sockets of an old binary: `6;7;`.
pub const SOCKETS: &str = "NGINX";
/// Those of them that a service manager has opened, written alike.
pub const ACTIVATED: &str = "RINGX_ACTIVATED";
/// The first descriptor that a service manager passes.
const FIRST_ACTIVATED: RawFd = 3;
/// More sockets than a process has.
const SOCKETS_MAX: RawFd = 1 << 20;

/// What the process was started as, so that it can be started again.
#[derive(Debug)]
pub struct Origin {
    pub arguments: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    pub directory: io::Result<PathBuf>,
}

/// A listening socket that was open before the process was.
#[derive(Debug)]
pub struct InheritedSocket {
    pub address: ListenAddress,
    pub socket: Socket,
    /// A service manager has opened it and keeps it.
    pub is_activated: bool,
}

/// All that the process was started with.
#[derive(Debug)]
pub struct Inherited {
    pub origin: Origin,
    /// The old binary that has started this process.
    pub predecessor: Option<Pid>,
    pub sockets: Vec<InheritedSocket>,
    pub handover: Option<Handover>,
    /// For the log, once there is one.
    pub remarks: Vec<(Level, String)>,
}

impl Inherited {
    /// Reads the environment, takes what it names, and takes the names out of it.
    ///
    /// To be called before there is a second thread or another descriptor.
    pub fn take() -> Self {
        let variable = |name| env::var_os(name).map(|text| text.to_string_lossy().into_owned());
        let list = variable(SOCKETS);
        let activated = variable(ACTIVATED).unwrap_or_default();
        let line = variable(handover::VARIABLE).and_then(|number| number.parse().ok());
        let count = count_activated(
            variable("LISTEN_PID").as_deref(),
            variable("LISTEN_FDS").as_deref(),
            std::process::id(),
        );
        os::unset_environment(&[
            SOCKETS,
            ACTIVATED,
            handover::VARIABLE,
            "LISTEN_PID",
            "LISTEN_FDS",
            "LISTEN_FDNAMES",
        ]);

        let mut remarks = Vec::new();
        let mut numbers = Vec::new();
        let mut kept_elsewhere = read_sockets(&activated).0;
        if let Some(list) = &list {
            remarks.push((Level::Notice, format!("using inherited sockets from \"{list}\"")));
            let (read, complaints) = read_sockets(list);
            remarks.extend(complaints.into_iter().map(|text| (Level::Emerg, text)));
            numbers = read;
        }
        if count > 0 {
            let activated = FIRST_ACTIVATED..FIRST_ACTIVATED.saturating_add(count);
            remarks.push((Level::Notice, format!("using sockets from \"LISTEN_FDS={count}\"")));
            kept_elsewhere.extend(activated.clone());
            numbers.extend(activated);
        }
        // The line first: what is at fault with the other numbers is no reason to lose it.
        let all: Vec<RawFd> = line.into_iter().chain(numbers.iter().copied()).collect();
        let mut taken = os::take_sockets(&all).into_iter();
        let handover =
            line.and_then(|_| taken.next()).and_then(Result::ok).map(Handover::inherited);
        let mut sockets = Vec::new();
        for (number, descriptor) in numbers.into_iter().zip(taken) {
            let is_activated = kept_elsewhere.contains(&number);
            match examine(number, descriptor, is_activated) {
                Ok(socket) => sockets.push(socket),
                Err(text) => remarks.push((Level::Crit, text)),
            }
        }
        if list.is_some() {
            os::succeed();
        }
        Inherited {
            origin: Origin::note(),
            predecessor: list.and_then(|_| rustix::process::getppid()),
            sockets,
            handover,
            remarks,
        }
    }
}

impl Origin {
    fn note() -> Self {
        Origin {
            arguments: env::args_os().collect(),
            environment: env::vars_os().collect(),
            directory: env::current_dir(),
        }
    }
}

/// A listening socket, or what is wrong with it in nginx's words.
fn examine(
    number: RawFd,
    descriptor: io::Result<OwnedFd>,
    is_activated: bool,
) -> Result<InheritedSocket, String> {
    let failed = |call: &str, e: &io::Error| {
        format!("{call} of the inherited socket #{number} failed ({})", Errno::of(e))
    };
    let socket = Socket::from(descriptor.map_err(|e| failed("getsockname()", &e))?);
    let name = socket.local_addr().map_err(|e| failed("getsockname()", &e))?;
    let path = || name.as_pathname().map(|path| ListenAddress::Unix(path.to_owned()));
    let address = name.as_socket().map(ListenAddress::Inet).or_else(path).ok_or_else(|| {
        format!("the inherited socket #{number} has an unsupported protocol family")
    })?;
    let kind = socket.r#type().map_err(|e| failed("getsockopt(SO_TYPE)", &e))?;
    if kind != Type::STREAM {
        return Err(format!("the inherited socket #{number} is not for connections"));
    }
    socket.set_nonblocking(true).map_err(|e| failed("ioctl(FIONBIO)", &e))?;
    Ok(InheritedSocket { address, socket, is_activated })
}

/// The numbers of a list like `6;7;`, and what is wrong with it in nginx's words.
fn read_sockets(list: &str) -> (Vec<RawFd>, Vec<String>) {
    let mut numbers = Vec::new();
    let mut complaints = Vec::new();
    let mut rest = list;
    while let Some(end) = rest.find([':', ';']) {
        let (word, after) = rest.split_at(end);
        let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        match word.parse::<RawFd>() {
            Ok(number) if is_number => numbers.push(number),
            _ => {
                complaints.push(format!(
                    "invalid socket number \"{rest}\" in {SOCKETS} environment variable, ignoring \
                     the rest of the variable"
                ));
                // nginx says it twice, unless there is nothing before the separator.
                if word.is_empty() {
                    return (numbers, complaints);
                }
                break;
            }
        }
        rest = after.get(1..).unwrap_or_default();
    }
    if !rest.is_empty() {
        complaints.push(format!(
            "invalid socket number \"{rest}\" in {SOCKETS} environment variable, ignoring"
        ));
    }
    (numbers, complaints)
}

/// How many sockets a service manager has passed to the process `own`.
fn count_activated(pid: Option<&str>, count: Option<&str>, own: u32) -> RawFd {
    let is_for_us = pid.and_then(|pid| pid.parse().ok()) == Some(own);
    let count = count.filter(|_| is_for_us).and_then(|count| count.parse().ok()).unwrap_or(0);
    count.clamp(0, SOCKETS_MAX)
}

/// Any list gives numbers that descriptors can have; one without a complaint is made of nothing else.
pub fn fuzz_inherited(data: &[u8]) {
    let list = String::from_utf8_lossy(data);
    let (numbers, complaints) = read_sockets(&list);
    assert!(numbers.iter().all(|&number| number >= 0));
    let separators = list.matches([':', ';']).count();
    assert_eq!(
        complaints.is_empty(),
        numbers.len() == separators && !list.ends_with(|c: char| !matches!(c, ':' | ';'))
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_as_nginx_reads_them() {
        assert_eq!(read_sockets("6;7;"), (vec![6, 7], vec![]));
        assert_eq!(read_sockets("6:007;"), (vec![6, 7], vec![]));
        assert_eq!(read_sockets(""), (vec![], vec![]));
        let rest = |rest| {
            format!(
                "invalid socket number \"{rest}\" in NGINX environment variable, ignoring the rest \
                 of the variable"
            )
        };
        let end = |end| {
            format!("invalid socket number \"{end}\" in NGINX environment variable, ignoring")
        };
        assert_eq!(read_sockets("6;x;7;"), (vec![6], vec![rest("x;7;"), end("x;7;")]));
        assert_eq!(read_sockets("6;;7;"), (vec![6], vec![rest(";7;")]));
        assert_eq!(read_sockets("6;7"), (vec![6], vec![end("7")]));
        assert_eq!(read_sockets("+6;"), (vec![], vec![rest("+6;"), end("+6;")]));
        assert_eq!(read_sockets("99999999999;").0, []);
    }

    #[test]
    fn sockets_of_a_service_manager() {
        assert_eq!(count_activated(Some("12"), Some("2"), 12), 2);
        assert_eq!(count_activated(Some("13"), Some("2"), 12), 0);
        assert_eq!(count_activated(None, Some("2"), 12), 0);
        assert_eq!(count_activated(Some("12"), None, 12), 0);
        assert_eq!(count_activated(Some("12"), Some("-2"), 12), 0);
        assert_eq!(count_activated(Some("12"), Some("2147483647"), 12), SOCKETS_MAX);
    }

    #[test]
    fn what_is_no_listening_socket_is_told() {
        let said = |descriptor: io::Result<OwnedFd>| examine(7, descriptor, false).unwrap_err();
        assert_eq!(
            said(Err(io::Error::from_raw_os_error(libc::EBADF))),
            "getsockname() of the inherited socket #7 failed (9: Bad file descriptor)"
        );
        let (line, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(
            said(Ok(line.into())),
            "the inherited socket #7 has an unsupported protocol family"
        );
        let datagrams = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        assert_eq!(said(Ok(datagrams.into())), "the inherited socket #7 is not for connections");
        let good = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = ListenAddress::Inet(good.local_addr().unwrap());
        assert_eq!(examine(7, Ok(good.into()), true).unwrap().address, address);
    }

    proptest! {
        #[test]
        fn any_list(list in "[0-9;:x]{0,12}") {
            fuzz_inherited(list.as_bytes());
        }
    }
}
