//! Every directive table in manual order, and the configuration they make.

use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use crate::config::apply::{State, apply, apply_defaults};
use crate::config::diagnostic::{Diagnostic, Fault, Outcome, Place};
use crate::config::directive::{Contexts, Module};
use crate::config::manual;
use crate::config::tree::{Disk, Files, Node, Tree};
use crate::error_log::{Destination, Level, Target};
use crate::http::draft::Draft;
use crate::http::modules as http;
use crate::http::server::Http;

pub mod events;
pub mod missing;
pub mod process;

/// A configuration, checked and frozen.
#[derive(Debug)]
pub struct Config {
    pub process: process::Settings,
    pub events: events::Settings,
    /// `None`: there is no `http` block.
    pub http: Option<Http>,
    /// Every log file that is named, in the order met, also where no level writes to it because all
    /// that are inside name others: that it cannot be opened is a mistake all the same.
    pub named_logs: Vec<PathBuf>,
}

/// What a configuration is read from.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// `-c`: the main file, absolute.
    pub file: PathBuf,
    /// `-p`: what relative logs, roots, pid and temp paths are relative to, absolute.
    pub prefix: PathBuf,
    /// `-g`: directives read before the file.
    pub globals: Option<String>,
    /// `-e`: the error log that holds when the configuration names none.
    pub error_log: Option<PathBuf>,
}

#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// Warnings and notices in the order met.
    pub warnings: Vec<Diagnostic>,
    /// Every file with its text, once each, in reading order.
    pub files: Vec<(PathBuf, String)>,
}

#[derive(Debug)]
pub struct Failed {
    pub error: Diagnostic,
    /// What was said before the error was met.
    pub warnings: Vec<Diagnostic>,
}

/// The modules in manual order.
pub const MODULES: &[Module<Build>] = &[
    Module { name: "Core", tables: &[process::DIRECTIVES] },
    Module { name: "Events", tables: &[events::DIRECTIVES] },
    Module { name: "HTTP core", tables: &[http::core::DIRECTIVES] },
    Module { name: "HTTP rewrite", tables: &[http::rewrite::DIRECTIVES] },
    Module { name: "HTTP map", tables: &[http::map::DIRECTIVES] },
    Module { name: "HTTP geo", tables: &[http::geo::DIRECTIVES] },
    Module { name: "HTTP split_clients", tables: &[http::split_clients::DIRECTIVES] },
    Module { name: "HTTP realip", tables: &[http::realip::DIRECTIVES] },
    Module { name: "HTTP access", tables: &[http::access::DIRECTIVES] },
    Module { name: "HTTP resolver", tables: &[http::resolver::DIRECTIVES] },
    Module { name: "HTTP headers", tables: &[http::headers::DIRECTIVES] },
    Module { name: "HTTP proxy", tables: &[http::proxy::DIRECTIVES, http::proxy::EXCHANGE] },
    Module { name: "HTTP uwsgi", tables: &[http::uwsgi::DIRECTIVES, http::uwsgi::EXCHANGE] },
    Module { name: "HTTP WebSocket", tables: &[http::websocket::DIRECTIVES] },
    Module {
        name: "HTTP upstream",
        tables: &[http::upstream::DIRECTIVES, http::sticky::DIRECTIVES],
    },
    Module { name: "HTTP health checks", tables: &[http::health_check::DIRECTIVES] },
    Module { name: "HTTP log", tables: &[http::access_log::DIRECTIVES] },
    Module { name: "HTTP stub status", tables: &[http::stub_status::DIRECTIVES] },
    Module { name: "ringx status", tables: &[http::status::DIRECTIVES] },
    Module {
        name: "Other modules of nginx",
        tables: &[missing::DIRECTIVES, missing::PROXY, missing::UWSGI],
    },
];

/// `conf/directives.md`.
pub fn manual() -> String {
    manual::render(MODULES)
}

/// Reads, checks and freezes a configuration.
pub fn load(options: &LoadOptions) -> Result<Loaded, Failed> {
    load_from(options, &Disk)
}

/// [`load`] from other files than the disk's.
pub fn load_from(options: &LoadOptions, files: &dyn Files) -> Result<Loaded, Failed> {
    let mut build = Build::new(&options.prefix);
    let globals = options.globals.as_deref();
    let globals = globals.map(|text| Tree::globals(text, &options.file, files)).unwrap_or_default();
    let tree = Tree::read(&options.file, files);
    let result = read(&mut build, options, &globals, &tree);
    let warnings = std::mem::take(&mut build.reports);
    match result {
        Ok(http) => Ok(Loaded {
            config: Config {
                process: build.process,
                events: build.events,
                http,
                named_logs: build.named_logs,
            },
            warnings,
            files: globals.files.into_iter().chain(tree.files).collect(),
        }),
        Err(error) => Err(Failed { error, warnings }),
    }
}

fn read(
    build: &mut Build,
    options: &LoadOptions,
    globals: &Tree,
    tree: &Tree,
) -> Result<Option<Http>, Diagnostic> {
    build.read_defaults()?;
    note_sets(build, &tree.nodes);
    apply(MODULES, build, &globals.nodes, Contexts::MAIN)?;
    apply(MODULES, build, &tree.nodes, Contexts::MAIN)?;
    build.finish(options).map_err(|fault| fault.located(&Place::CommandLine))
}

/// What a `set` gives a value has it wherever it is used, before that `set` too.
fn note_sets(build: &mut Build, nodes: &[Node]) {
    for node in nodes {
        let Node::Statement(statement) = node else { continue };
        if let Some(block) = &statement.block {
            note_sets(build, &block.nodes);
        } else if let [set, name, _] = statement.words.as_slice()
            && set == "set"
            && let Some(name) = name.strip_prefix('$')
        {
            build.http.names.note_set(name);
        }
    }
}

/// A configuration while it is read: what the rows write to.
#[derive(Debug)]
pub struct Build {
    prefix: PathBuf,
    pub process: process::Settings,
    pub events: events::Settings,
    pub blocks: Blocks,
    /// The `http` block, empty until it is met.
    pub http: Draft,
    frozen_http: Option<Http>,
    named_logs: Vec<PathBuf>,
    defaults: Option<(process::Settings, events::Settings)>,
    reports: Vec<Diagnostic>,
}

/// Which of the blocks that may stand once were met.
#[derive(Debug, Default, Clone, Copy)]
pub struct Blocks {
    pub events: bool,
    pub http: bool,
}

impl State for Build {
    fn report(&mut self, diagnostic: Diagnostic) {
        self.reports.push(diagnostic);
    }
}

impl Build {
    pub fn new(prefix: &Path) -> Self {
        Build {
            prefix: prefix.to_owned(),
            process: process::Settings::default(),
            events: events::Settings::default(),
            blocks: Blocks::default(),
            http: Draft::default(),
            frozen_http: None,
            named_logs: Vec::new(),
            defaults: None,
            reports: Vec::new(),
        }
    }

    /// Runs every row's default and puts the result below all levels of the configuration.
    pub fn read_defaults(&mut self) -> Result<(), Diagnostic> {
        let contexts =
            Contexts::MAIN.or(Contexts::EVENTS).or(Contexts::HTTP).or(Contexts::UPSTREAM);
        self.http.add_builtin_formats().map_err(|fault| fault.located(&Place::CommandLine))?;
        apply_defaults(MODULES, self, contexts)?;
        self.http.keep_defaults();
        let process = std::mem::take(&mut self.process);
        self.defaults = Some((process, std::mem::take(&mut self.events)));
        Ok(())
    }

    /// Whether what is applied now are the rows' defaults.
    pub fn reads_defaults(&self) -> bool {
        self.defaults.is_none()
    }

    /// What follows the last statement of the main file.
    fn finish(&mut self, options: &LoadOptions) -> Outcome<Option<Http>> {
        if !self.blocks.events {
            return Err(Fault::nowhere("no \"events\" section in configuration"));
        }
        if let Some((process, events)) = &self.defaults {
            self.process.inherit(process);
            self.events.inherit(events);
        }
        self.process.keep_time_zone();
        // One log is on this machine, whatever is sent elsewhere.
        if !self.process.error_log.iter().any(|target| target.destination.is_file()) {
            self.process.error_log.push(self.default_error_log(options));
        }
        self.check_worker_counts();
        let mut http = self.frozen_http.take();
        if let Some(http) = &mut http {
            let listening = http.addresses.len();
            let connections = *self.events.worker_connections;
            if connections < listening {
                return Err(Fault::nowhere(format!(
                    "{connections} worker_connections are not enough for {listening} listening sockets"
                )));
            }
            for location in &mut http.locations {
                location.settings.core.error_log.inherit(&self.process.error_log);
            }
        }
        Ok(http)
    }

    fn default_error_log(&self, options: &LoadOptions) -> Target {
        let destination = match &options.error_log {
            Some(path) if path.as_os_str() == "stderr" => Destination::Stderr,
            Some(path) => Destination::File(self.prefix.join(path)),
            None => Destination::File(self.prefix.join("logs/error.log")),
        };
        Target { destination, level: Level::Error }
    }

    fn check_worker_counts(&mut self) {
        if let Some(process::CpuAffinity::Masks(masks)) = self.process.worker_cpu_affinity.get()
            && masks.len() > 1
            && masks.len() != *self.process.worker_processes
        {
            self.warn(
                None,
                "the number of \"worker_processes\" is not equal to the number of \
                 \"worker_cpu_affinity\" masks, using last mask for remaining worker processes",
            );
        }
        let connections = *self.events.worker_connections;
        let system = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let limit = self.process.worker_rlimit_nofile.get().copied().unwrap_or(system);
        if connections as u64 > system.max(limit) {
            let text = format!(
                "{connections} worker_connections exceed open file resource limit: {limit}"
            );
            self.warn(None, text);
        }
    }

    /// Freezes the `http` block at its closing brace.
    pub fn freeze_http(&mut self) -> Outcome {
        let mut warnings = Vec::new();
        let http = std::mem::take(&mut self.http).freeze(&mut warnings);
        for text in warnings {
            self.warn(None, text);
        }
        self.frozen_http = Some(http?);
        Ok(())
    }

    pub fn warn(&mut self, place: Option<&Place>, text: impl Into<String>) {
        self.say(Level::Warn, place, text);
    }

    /// What is no reason to stop, however severe nginx calls it.
    pub fn say(&mut self, level: Level, place: Option<&Place>, text: impl Into<String>) {
        let (text, place) = (text.into(), place.cloned());
        self.reports.push(Diagnostic { level, text, place });
    }

    /// The settings of the http level being read.
    pub fn level(&mut self) -> &mut http::Settings {
        self.http.level()
    }

    /// A path relative to the prefix, made absolute.
    pub fn path(&self, path: &str) -> PathBuf {
        self.prefix.join(path)
    }

    /// The same for a log file; one without a name stays without, and is stderr.
    pub fn log_path(&mut self, path: &str) -> PathBuf {
        let path = if path.is_empty() { PathBuf::new() } else { self.path(path) };
        // A default is opened where it holds.
        if !self.reads_defaults() {
            self.named_logs.push(path.clone());
        }
        path
    }
}

/// Any text as a main file: loading ends in a configuration or in one error.
pub fn fuzz_load(data: &[u8]) {
    struct Only(String);
    impl Files for Only {
        fn read(&self, path: &Path) -> std::io::Result<String> {
            if path.ends_with("x.conf") {
                Ok(self.0.clone())
            } else {
                Err(std::io::Error::from_raw_os_error(libc::ENOENT))
            }
        }
        fn matching(&self, _: &Path) -> Vec<PathBuf> {
            Vec::new()
        }
    }
    let text = String::from_utf8_lossy(data).into_owned();
    let options = LoadOptions {
        file: "/c/x.conf".into(),
        prefix: "/p".into(),
        globals: None,
        error_log: None,
    };
    match load_from(&options, &Only(text)) {
        Ok(loaded) => {
            for address in loaded.config.http.iter().flat_map(|http| &http.addresses) {
                assert!(!address.listen.name.is_empty());
            }
        }
        Err(failed) => assert!(failed.error.level == Level::Emerg && !failed.error.text.is_empty()),
    }
}

#[cfg(test)]
mod tests;
