//! The server as a client sees it: raw requests over TCP, answers byte by byte.

use super::*;
use crate::model::ContentId;
use crate::upstream::conformance::{Fixture, assert_conforms, repository};
use crate::upstream::{HttpClient, HttpOptions, layout};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Stratum {
    fixture: Fixture,
    dir: tempfile::TempDir,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

/// What came back: status line and headers in lower case, and the body.
struct Answer {
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn status(&self) -> u16 {
        self.head[9..12].parse().unwrap()
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Stratum {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Fixture::new();
        fixture.write_to(&dir.path().join("data"));
        let server = Server::bind(ServeOptions {
            dir: dir.path().join("data"),
            listen: "127.0.0.1:0".into(),
            log: Some(LogTarget::File(dir.path().join("access.log"))),
            log_json: false,
        })
        .await
        .unwrap();
        assert!(server.has_repository());
        let address = server.address();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self { fixture, dir, address, stop, running }
    }

    async fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
        Answer { head, body: bytes.split_off(end + 4) }
    }

    async fn get(&self, path: &str, headers: &str) -> Answer {
        self.ask("GET", path, headers).await
    }

    fn object(&self) -> (String, Bytes, String) {
        let bytes = self.fixture.segments[0].clone();
        let id = ContentId::of(&bytes);
        (format!("/{}", layout::object_path(&repository(), &id)), bytes, format!("\"{id}\""))
    }

    fn log(&self) -> Vec<AccessLine> {
        let text = std::fs::read_to_string(self.dir.path().join("access.log")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

use bytes::Bytes;

#[tokio::test]
async fn the_http_client_against_this_server_conforms() {
    let stratum = Stratum::start().await;
    let http = HttpClient::new(HttpOptions::default()).unwrap();
    let upstream = http.stratum(&format!("http://{}/", stratum.address)).unwrap();
    assert_conforms(&upstream, &stratum.fixture).await;
}

#[tokio::test]
async fn all_chunks_of_a_segment_leave_in_one_request() {
    let stratum = Stratum::start().await;
    let http = HttpClient::new(HttpOptions::default()).unwrap();
    let upstream = http.stratum(&format!("http://{}", stratum.address)).unwrap();
    let results =
        crate::upstream::Upstream::fetch_chunks(&upstream, &repository(), &stratum.fixture.chunks).await;
    stratum.fixture.assert_all(&results);
    let log = stratum.log();
    assert_eq!(log.len(), stratum.fixture.segments.len(), "{log:?}");
    let sent: u64 = log.iter().map(|line| line.body_bytes).sum();
    assert_eq!(sent, stratum.fixture.segments.iter().map(|segment| segment.len() as u64).sum::<u64>());
}

#[tokio::test]
async fn objects_are_cacheable_for_ever_and_roots_for_seconds() {
    let stratum = Stratum::start().await;
    let (path, bytes, etag) = stratum.object();
    let object = stratum.get(&path, "").await;
    assert_eq!((object.status(), object.body.as_slice()), (200, bytes.as_ref()));
    assert_eq!(object.field("cache-control"), Some("public, max-age=31536000, immutable"));
    assert_eq!(object.field("etag"), Some(etag.as_str()));
    assert_eq!(object.field("content-type"), Some("application/octet-stream"));
    assert_eq!(object.field("accept-ranges"), Some("bytes"));

    let root = stratum.get("/sw.example.org/root?x=1", "").await;
    assert_eq!((root.status(), root.body.as_slice()), (200, stratum.fixture.root.as_ref()));
    assert_eq!(root.field("cache-control"), Some("public, max-age=5, must-revalidate"));
    let tag = root.field("etag").unwrap().to_owned();
    let again = stratum.get("/sw.example.org/root", &format!("If-None-Match: \"x\", W/{tag}\r\n")).await;
    assert_eq!((again.status(), again.body.len()), (304, 0));
    std::fs::write(stratum.dir.path().join("data/sw.example.org/root"), b"the next revision").unwrap();
    let next = stratum.get("/sw.example.org/root", &format!("If-None-Match: {tag}\r\n")).await;
    assert_eq!((next.status(), next.body.as_slice()), (200, b"the next revision".as_slice()));
}

#[tokio::test]
async fn ranges_are_cut_as_the_standard_says() {
    let stratum = Stratum::start().await;
    let (path, bytes, etag) = stratum.object();
    let len = bytes.len();
    for (range, expected) in
        [("0-0", 0..1), ("5-99", 5..100), ("100-", 100..len), ("-7", len - 7..len), ("0-99999999", 0..len)]
    {
        let answer = stratum.get(&path, &format!("Range: bytes={range}\r\n")).await;
        assert_eq!((answer.status(), answer.body.as_slice()), (206, &bytes[expected.clone()]), "{range}");
        let told = format!("bytes {}-{}/{len}", expected.start, expected.end - 1);
        assert_eq!(answer.field("content-range"), Some(told.as_str()));
    }
    let answer = stratum.get(&path, &format!("Range: bytes={len}-\r\n")).await;
    assert_eq!(
        (answer.status(), answer.field("content-range")),
        (416, Some(format!("bytes */{len}").as_str()))
    );
    assert_eq!(answer.field("cache-control"), Some("no-store"));
    for ignored in
        ["Range: bytes=0-1,5-6\r\n", "Range: lines=1-2\r\n", "Range: bytes=0-1\r\nIf-Range: \"other\"\r\n"]
    {
        let answer = stratum.get(&path, ignored).await;
        assert_eq!((answer.status(), answer.body.len()), (200, len), "{ignored}");
    }
    let answer = stratum.get(&path, &format!("Range: bytes=0-1\r\nIf-Range: {etag}\r\n")).await;
    assert_eq!((answer.status(), answer.body.len()), (206, 2));
    let head = stratum.ask("HEAD", &path, "Range: bytes=0-1\r\n").await;
    assert_eq!((head.status(), head.body.len()), (200, 0));
    assert_eq!(head.field("content-length"), Some(len.to_string().as_str()));
    // One that needs many pieces arrives whole and in order.
    let large = &stratum.fixture.segments[1];
    let path = format!("/{}", layout::object_path(&repository(), &ContentId::of(large)));
    let answer = stratum.get(&path, "Range: bytes=1-\r\n").await;
    assert!(answer.body == large[1..]);
}

#[tokio::test]
async fn nothing_but_the_layout_is_served() {
    let stratum = Stratum::start().await;
    let data = stratum.dir.path().join("data");
    std::fs::write(stratum.dir.path().join("secret"), b"secret").unwrap();
    std::fs::write(data.join("sw.example.org/.root.tmp"), b"half a root").unwrap();
    std::fs::create_dir(data.join("outside")).unwrap();
    std::os::unix::fs::symlink("../../secret", data.join("outside/root")).unwrap();
    std::fs::create_dir(data.join("absolute")).unwrap();
    std::os::unix::fs::symlink(stratum.dir.path().join("secret"), data.join("absolute/root")).unwrap();
    std::fs::create_dir_all(data.join("folder/root")).unwrap();
    std::fs::create_dir(data.join("circle")).unwrap();
    std::os::unix::fs::symlink("root", data.join("circle/root")).unwrap();
    std::os::unix::fs::symlink("sw.example.org", data.join("alias")).unwrap();
    for path in [
        "/",
        "/secret",
        "/../secret",
        "/sw.example.org/../../secret",
        "/sw.example.org/%2e%2e/%2e%2e/secret",
        "/sw.example.org/.root.tmp",
        "/sw.example.org/",
        "/outside/root",
        "/absolute/root",
        "/folder/root",
        "/circle/root",
        "/none/root",
    ] {
        let answer = stratum.get(path, "").await;
        assert_eq!((answer.status(), answer.body.len()), (404, 0), "{path}");
    }
    assert_eq!(stratum.get("/alias/root", "").await.status(), 200, "a link inside the folder");
    let post = stratum.ask("POST", "/sw.example.org/root", "Content-Length: 0\r\n").await;
    assert_eq!((post.status(), post.field("allow")), (405, Some("get, head")));
}

#[tokio::test]
async fn every_request_is_logged_before_its_answer_ends() {
    let stratum = Stratum::start().await;
    let (path, bytes, _) = stratum.object();
    stratum.get(&path, "Range: bytes=10-19\r\n").await;
    stratum.get(&path, "").await;
    stratum.ask("HEAD", "/sw.example.org/root", "").await;
    stratum.get("/nothing/here", "").await;
    let log = stratum.log();
    let seen: Vec<_> =
        log.iter().map(|l| (l.method.as_str(), l.path.as_str(), l.range, l.status, l.body_bytes)).collect();
    assert_eq!(
        seen,
        [
            ("GET", path.as_str(), Some((10, 19)), 206, 10),
            ("GET", path.as_str(), None, 200, bytes.len() as u64),
            ("HEAD", "/sw.example.org/root", None, 200, 0),
            ("GET", "/nothing/here", None, 404, 0),
        ]
    );
}

#[tokio::test]
async fn stopping_lets_an_answer_under_way_end_and_takes_no_new_connection() {
    let stratum = Stratum::start().await;
    let (path, bytes, _) = stratum.object();
    // A connection that has asked half a request, and one that idles.
    let mut half = TcpStream::connect(stratum.address).await.unwrap();
    half.write_all(format!("GET {path} HTTP/1.1\r\n").as_bytes()).await.unwrap();
    let answer = stratum.get(&path, "").await;
    assert_eq!(answer.body.len(), bytes.len());
    stratum.stop.send(()).unwrap();
    drop(half);
    stratum.running.await.unwrap();
    assert!(TcpStream::connect(stratum.address).await.is_err());
}

#[tokio::test]
async fn what_cannot_be_served_is_said_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let options = |dir: &Path, listen: &str| ServeOptions {
        dir: dir.to_owned(),
        listen: listen.into(),
        log: None,
        log_json: false,
    };
    let missing = Server::bind(options(&dir.path().join("missing"), "127.0.0.1:0")).await.unwrap_err();
    assert!(matches!(&missing, ServeError::Dir { dir, .. } if dir.ends_with("missing")), "{missing}");
    let first = Server::bind(options(dir.path(), "127.0.0.1:0")).await.unwrap();
    assert!(!first.has_repository());
    let taken = Server::bind(options(dir.path(), &first.address().to_string())).await.unwrap_err();
    assert!(matches!(&taken, ServeError::Listen { .. }), "{taken}");
    let nonsense = Server::bind(options(dir.path(), "nowhere")).await.unwrap_err();
    assert!(nonsense.to_string().contains("nowhere"), "{nonsense}");
}
