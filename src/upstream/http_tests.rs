//! The client against servers that misbehave: each answers every connection with the same bytes.

use super::*;
use crate::model::ContentId;
use crate::upstream::conformance::{Fixture, repository};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A server that reads a request, writes `answer`, and closes, or holds the connection open.
async fn scripted(answer: Vec<u8>, close: bool) -> HttpStratum {
    let url = script(answer, close).await;
    let options = HttpOptions { no_progress_timeout: Duration::from_millis(100), ..HttpOptions::default() };
    HttpClient::new(options).unwrap().stratum(&url).unwrap()
}

/// Starts that server and tells its URL.
async fn script(answer: Vec<u8>, close: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let at = url.clone();
    let answer =
        String::from_utf8(answer.clone()).map_or(answer, |text| text.replace("SELF", &url).into_bytes());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&answer).await;
            if close {
                let _ = stream.shutdown().await;
            } else {
                held.push(stream);
            }
        }
    });
    at
}

fn with_body(head: &str, body: &[u8]) -> Vec<u8> {
    [head.as_bytes(), b"\r\n\r\n", body].concat()
}

/// Chunks of the first segment, the segment, and what the client asks for.
fn segment() -> (Fixture, Vec<ChunkRef>, Bytes) {
    let fixture = Fixture::new();
    let bytes = fixture.segments[0].clone();
    let name = ContentId::of(&bytes);
    let chunks = fixture.chunks.iter().copied().filter(|c| c.place.segment == name).collect();
    (fixture, chunks, bytes)
}

async fn fetch(answer: Vec<u8>, close: bool, chunks: &[ChunkRef]) -> Vec<Result<Bytes, UpstreamError>> {
    scripted(answer, close).await.fetch_chunks(&repository(), chunks).await
}

fn assert_malformed(results: &[Result<Bytes, UpstreamError>], needle: &str) {
    for result in results {
        let error = result.as_ref().unwrap_err();
        assert!(matches!(error, UpstreamError::Malformed { .. }), "{error:?}");
        assert!(error.to_string().contains(needle), "{error} does not say {needle}");
    }
}

#[tokio::test]
async fn a_server_that_ignores_range_is_tolerated() {
    let (fixture, chunks, bytes) = segment();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}", bytes.len());
    let results = fetch(with_body(&head, &bytes), true, &chunks[2..]).await;
    assert_eq!(results[0].as_ref().unwrap(), &fixture.plain[2]);
    assert_eq!(results[1].as_ref().unwrap(), &fixture.plain[3]);
}

#[tokio::test]
async fn a_forward_proxy_is_asked_in_place_of_the_stratum() {
    let (fixture, chunks, bytes) = segment();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}", bytes.len());
    let proxy = Some(script(with_body(&head, &bytes), true).await);
    let client = HttpClient::new(HttpOptions { proxy, ..HttpOptions::default() }).unwrap();
    // A name that no resolver knows: only the proxy can have answered.
    let stratum = client.stratum("http://stratum.invalid").unwrap();
    let results = stratum.fetch_chunks(&repository(), &chunks[2..]).await;
    assert_eq!(results[0].as_ref().unwrap(), &fixture.plain[2]);
}

#[tokio::test]
async fn another_range_than_the_one_asked_for_is_refused() {
    let (_, chunks, bytes) = segment();
    let last = bytes.len() - 1;
    for range in
        [format!("bytes 1-{last}/{}", bytes.len()), format!("bytes 0-{}/*", last - 1), "nonsense".into()]
    {
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: {range}",
            bytes.len()
        );
        assert_malformed(&fetch(with_body(&head, &bytes), true, &chunks).await, &range);
    }
    let head = format!("HTTP/1.1 206 Partial Content\r\nContent-Length: {}", bytes.len());
    assert_malformed(&fetch(with_body(&head, &bytes), true, &chunks).await, "content range");
}

#[tokio::test]
async fn lengths_and_encodings_that_do_not_fit_are_refused() {
    let (_, chunks, bytes) = segment();
    let range = format!("Content-Range: bytes 0-{}/{}", bytes.len() - 1, bytes.len());
    let longer = format!("HTTP/1.1 206 Partial Content\r\n{range}\r\nContent-Length: {}", bytes.len() + 1);
    assert_malformed(
        &fetch(with_body(&longer, &bytes), true, &chunks).await,
        &format!("{} bytes", bytes.len() + 1),
    );
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 10";
    assert_malformed(&fetch(with_body(short, &bytes[..10]), true, &chunks).await, "10 bytes");
    let coded = format!(
        "HTTP/1.1 206 Partial Content\r\n{range}\r\nContent-Encoding: gzip\r\nContent-Length: {}",
        bytes.len()
    );
    assert_malformed(&fetch(with_body(&coded, &bytes), true, &chunks).await, "gzip");
}

#[tokio::test]
async fn what_arrived_before_a_connection_broke_is_kept() {
    let (fixture, chunks, bytes) = segment();
    let cut = usize::try_from(chunks[3].place.offset).unwrap() + 1;
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {len}\r\nContent-Range: bytes 0-{last}/{len}",
        len = bytes.len(),
        last = bytes.len() - 1
    );
    let results = fetch(with_body(&head, &bytes[..cut]), true, &chunks).await;
    for (result, plain) in results.iter().zip(&fixture.plain).take(3) {
        assert_eq!(result.as_ref().unwrap(), plain);
    }
    assert!(matches!(results[3], Err(UpstreamError::Connection { .. })), "{:?}", results[3]);
    // What is there is told of while the rest is still awaited.
    let (tell, mut told) = tokio::sync::mpsc::channel(8);
    let endless = script(with_body(&head, &bytes[..cut]), false).await;
    let stratum = HttpClient::new(HttpOptions::default()).unwrap().stratum(&endless).unwrap();
    let hear = |position: usize, _: &Bytes| tell.try_send(position).unwrap();
    let (repository, mut heard) = (repository(), Vec::new());
    let mut call = stratum.fetch_each(&repository, &chunks, &hear);
    while heard.len() < 3 {
        tokio::select! {
            _ = &mut call => panic!("the server still holds back the fourth"),
            Some(position) = told.recv() => heard.push(position),
        }
    }
    assert_eq!(heard, [0, 1, 2]);
    drop(call);
    let stalled = fetch(with_body(&head, &bytes[..cut]), false, &chunks).await;
    assert!(stalled[..3].iter().all(Result::is_ok));
    assert!(matches!(stalled[3], Err(UpstreamError::TimedOut { .. })), "{:?}", stalled[3]);
}

#[tokio::test]
async fn a_root_without_end_is_cut_off() {
    let body = vec![b'x'; limits::ROOT_MAX_BYTES + 1];
    let stratum = scripted(with_body("HTTP/1.1 200 OK", &body), true).await;
    let error = stratum.fetch_root(&repository()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Malformed { .. }), "{error:?}");
}

#[tokio::test]
async fn redirects_are_bounded() {
    let head = "HTTP/1.1 302 Found\r\nLocation: SELF/again\r\nContent-Length: 0";
    let error = scripted(with_body(head, b""), true).await.fetch_root(&repository()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Malformed { .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_listening_is_worth_another_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let stratum = HttpClient::new(HttpOptions::default()).unwrap().stratum(&url).unwrap();
    let error = stratum.fetch_root(&repository()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Connection { .. }) && !error.is_permanent(), "{error:?}");
    assert!(error.to_string().contains("refused"), "{error} does not say why");
}

#[test]
fn only_plain_http_urls_name_a_stratum() {
    let http = HttpClient::new(HttpOptions::default()).unwrap();
    assert_eq!(http.stratum("https://a.example/x/").unwrap().url(), "https://a.example/x");
    for bad in ["", "a.example", "ftp://a.example", "http://", "http://a/?q", "http://a/#f", "file:///etc"] {
        let error = http.stratum(bad).unwrap_err().to_string();
        assert!(error.contains(bad), "{error} does not show {bad}");
    }
}
