use super::*;
use crate::boot::BootMode;
use clap::Parser;
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../../../docs/lockstep.example.toml");

/// The example with the keys that have no default.
fn full_example() -> String {
    EXAMPLE.replace("#: ", "")
}

fn error(text: &str) -> String {
    Config::parse(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_and_the_example_are_the_defaults() {
    assert_eq!(Config::parse("").unwrap(), Config::default());
    assert_eq!(Config::parse(EXAMPLE).unwrap(), Config::default());
}

#[test]
fn the_example_shows_every_key() {
    // `initrd` needs a kernel; the full example has both.
    let full = Config::parse(&full_example()).unwrap();
    let shown: toml::Table = toml::from_str(&full_example()).unwrap();
    let all: toml::Table = toml::from_str(&full.to_toml().unwrap()).unwrap();
    assert_eq!(shown, all);
    let Config {
        vm,
        boot,
        guest: _,
        disk,
        net,
        console: _,
        ft: _,
        detect: _,
        lag: _,
        log,
        hash: _,
        primary,
        backup,
    } = full;
    // Whatever may be absent from a serialised configuration is in the example.
    let optional = [
        vm.uuid.is_some(),
        boot.kernel.is_some() && boot.initrd.is_some() && boot.cmdline.is_some(),
        disk.path.is_some() && disk.size.is_some(),
        net.mac.is_some(),
        log.record.is_some(),
    ];
    assert_eq!(optional, [true; 5]);
    for Endpoints {
        log,
        register,
        nbd,
        netd,
    } in [primary, backup]
    {
        assert!(log.is_some() && register.is_some() && nbd.is_some() && netd.is_some());
    }
}

#[test]
fn a_configuration_survives_being_written() {
    for text in [EXAMPLE, &full_example()] {
        let config = Config::parse(text).unwrap();
        assert_eq!(Config::parse(&config.to_toml().unwrap()).unwrap(), config);
    }
}

#[test]
fn errors_name_the_key_the_line_and_what_is_allowed() {
    let cases: [(&str, &[&str]); 17] = [
        ("[vm]\nmemry = \"1GiB\"", &["line 2", "memry", "`memory`"]),
        ("[wm]\nmemory = 1", &["line 1", "wm", "`vm`"]),
        (
            "[vm]\nmemory = \"3MiB\"",
            &["line 2", "memory", "16MiB", "64GiB"],
        ),
        ("[vm]\n\nmemory = \"1 PB\"", &["line 3", "memory", "512MiB"]),
        ("[vm]\nmemory = 512", &["line 2", "memory", "string"]),
        ("[vm]\nengine = \"hard\"", &["line 2", "engine", "`soft`"]),
        (
            "[vm]\nstretch_ms = 1001",
            &["vm.stretch_ms = 1001", "1 to 1000"],
        ),
        (
            "[vm]\nclock_percent = 101",
            &["vm.clock_percent = 101", "1 to 100"],
        ),
        ("[vm]\nstretch_ms = 0", &["line 2", "stretch_ms", "nonzero"]),
        ("[vm]\nname = \"../x\"", &["vm.name", "letters"]),
        (
            "[disk]\nreads = \"both\"",
            &["line 2", "reads", "`log`", "`backup`"],
        ),
        ("[net]\nmode = \"tap=\"", &["line 2", "mode", "tap=NAME"]),
        (
            "[net]\nmac = \"01:00:00:00:00:00\"",
            &["line 2", "mac", "unicast"],
        ),
        (
            "[[net.forward]]\nguest = 0",
            &["line 2", "guest", "nonzero"],
        ),
        (
            "[detect]\nsuspect_ms = 60",
            &["detect.heartbeat_ms = 50", "detect.suspect_ms"],
        ),
        ("[boot]\ninitrd = \"x\"", &["boot.initrd", "boot.kernel"]),
        ("[log]\nbuffer = \"1KiB\"", &["log.buffer = 1KiB", "64KiB"]),
    ];
    for (text, words) in cases {
        let said = error(text);
        for word in words {
            assert!(said.contains(word), "{text:?}: {word:?} is not in: {said}");
        }
    }
}

#[test]
fn sizes_and_addresses_are_read_as_people_write_them() {
    for (text, bytes) in [
        ("0", 0),
        ("512MiB", 512 << 20),
        ("512M", 512 << 20),
        ("2 GiB", 2 << 30),
    ] {
        assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes, "{text}");
    }
    for text in [
        "",
        "MiB",
        "-1",
        "1.5GiB",
        "1XiB",
        "99999999999TiB",
        "1e9",
        "１MiB",
    ] {
        assert!(text.parse::<ByteSize>().is_err(), "{text}");
    }
    assert_eq!("[::1]:7000".parse::<Address>().unwrap().host(), "::1");
    for text in [
        "", ":1", "a:", "a:+1", "a:65536", "::1:7000", "[x]:1", "a b:1",
    ] {
        assert!(text.parse::<Address>().is_err(), "{text}");
    }
    let forward: Forward = "0.0.0.0:8080:80".parse().unwrap();
    assert_eq!(
        (forward.guest.get(), forward.host.to_string().as_str()),
        (80, "0.0.0.0:8080")
    );
    assert_eq!(
        "16379:6379".parse::<Forward>().unwrap().host,
        Address::loopback(16379)
    );
    for text in ["", "0", "a:b", "1:0", ":1:2", "70000:1"] {
        assert!(text.parse::<Forward>().is_err(), "{text}");
    }
}

#[test]
fn two_forwards_cannot_share_a_host_port() {
    let one = "[[net.forward]]\nguest = 1\nhost = \"127.0.0.1:9\"\n";
    let two = one.replace("guest = 1", "guest = 2");
    assert!(error(&format!("{one}{two}")).contains("net.forward = 127.0.0.1:9"));
    assert!(Config::parse(&format!("{one}{}", two.replace(":9", ":0"))).is_ok());
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    config: ConfigFlags,
    #[command(flatten)]
    endpoints: Endpoints,
}

fn resolve(flags: &[&str], file: Option<&Path>) -> Result<Config, ConfigError> {
    let cli = Cli::try_parse_from(std::iter::once(&"test").chain(flags))?;
    cli.config.resolve(file)
}

#[test]
fn flags_beat_the_file_and_the_file_beats_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.toml");
    let text = "[vm]\nmemory = \"1GiB\"\nname = \"file\"\n[boot]\nkernel = \"k\"\nmode = \"pvh\"\n";
    std::fs::write(&path, text).unwrap();
    let flags = [
        "--name",
        "flag",
        "--forward",
        "7:8",
        "--forward",
        "9",
        "--hash-memory",
    ];
    let config = resolve(&flags, Some(&path)).unwrap();
    assert_eq!(config.vm.name, "flag");
    assert_eq!(config.vm.memory.bytes(), 1 << 30);
    assert_eq!(config.boot.mode, BootMode::Pvh);
    assert_eq!(config.boot.kernel, Some(dir.path().join("k")));
    assert_eq!(config.detect, Detect::default());
    assert!(config.hash.memory && !config.boot.exit_port);
    let guests: Vec<_> = config.net.forward.iter().map(|f| f.guest.get()).collect();
    assert_eq!(guests, [8, 9]);
    assert_eq!(resolve(&[], None).unwrap(), Config::default());
    assert!(!resolve(&["--ft", "false"], None).unwrap().ft.enabled);
}

#[test]
fn every_key_has_a_flag() {
    let command = <Cli as clap::CommandFactory>::command();
    let flags: Vec<_> = command
        .get_arguments()
        .map(|a| a.get_id().to_string())
        .collect();
    let all: toml::Table = toml::from_str(&full_example()).unwrap();
    for (section, keys) in &all {
        for key in keys.as_table().unwrap().keys() {
            let id = match section.as_str() {
                "primary" | "backup" => format!("{key}_address"),
                _ => format!("{section}.{key}"),
            };
            assert!(flags.contains(&id), "no flag for {id}");
        }
    }
    command.debug_assert();
}

#[test]
fn bad_flags_and_files_are_errors() {
    for flags in [
        ["--memory", "1MiB"],
        ["--heartbeat-ms", "0"],
        ["--net", "wifi"],
    ] {
        let said = resolve(&flags, None).unwrap_err().to_string();
        assert!(said.contains(flags[0]) && said.contains(flags[1]), "{said}");
    }
    let said = resolve(&["--suspect-ms", "10"], None)
        .unwrap_err()
        .to_string();
    assert!(said.contains("detect.heartbeat_ms"), "{said}");
    let missing = Path::new("/nonexistent/m.toml");
    assert!(matches!(
        Config::load(missing),
        Err(ConfigError::Read { .. })
    ));
}

#[test]
fn the_command_line_is_put_together() {
    let mut config = Config::default();
    assert_eq!(
        config.kernel_cmdline("root=x"),
        "root=x lockstep.appendfsync=everysec"
    );
    config.boot.append = "debug".into();
    config.guest.appendfsync = AppendFsync::Always;
    assert_eq!(
        config.kernel_cmdline("root=x"),
        "root=x debug lockstep.appendfsync=always"
    );
    config.boot.kernel = Some("k".into());
    assert_eq!(config.kernel_cmdline("root=x"), "debug");
    config.boot.cmdline = Some("a b".into());
    assert_eq!(config.kernel_cmdline("root=x"), "a b debug");
}

#[test]
fn the_defaults_are_the_protocols() {
    assert_eq!(Config::default().protocol(), ftlog::Config::default());
    assert_eq!(ftlog::Config::default().check(), Ok(()));
}

#[test]
fn machines_have_addresses_of_their_own() {
    let mut config = Config::default();
    let first = config.mac();
    config.vm.name = "other".into();
    assert_ne!(config.mac(), first);
    assert_eq!(first.to_string().parse::<Mac>().unwrap(), first);
    config.net.mac = Some(Mac([2, 0, 0, 0, 0, 1]));
    assert_eq!(config.mac().to_string(), "02:00:00:00:00:01");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Damaged files are errors or other configurations, never panics; what is accepted is kept.
    #[test]
    fn mutated_files_do_not_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<char>(), 0..3u8), 1..6),
    ) {
        let mut text: Vec<char> = full_example().chars().collect();
        for (at, new, kind) in edits {
            let at = at.index(text.len());
            match kind {
                0 => text[at] = new,
                1 => text.insert(at, new),
                _ => drop(text.drain(at..text.len().min(at + 7))),
            }
        }
        if let Ok(config) = Config::parse(&text.into_iter().collect::<String>()) {
            prop_assert_eq!(Config::parse(&config.to_toml().unwrap()).unwrap(), config);
        }
    }

    /// The small parsers take any text without a panic, and print what they took.
    #[test]
    fn values_round_trip(text in "[0-9a-fA-F:.,=\\[\\]MGKiBtape bridge]{0,24}") {
        macro_rules! check {
            ($($type:ty),*) => {$(
                if let Ok(value) = text.parse::<$type>() {
                    prop_assert_eq!(value.to_string().parse::<$type>().unwrap(), value);
                }
            )*};
        }
        check!(Address, ByteSize, Mac, NetMode, RamSize);
        let _ = text.parse::<Forward>();
    }
}
