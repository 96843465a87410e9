package proof

import (
	"net/http"
	"strings"
)

// A request is what a caller asks for.
type request struct {
	// tcp is a connection that speaks no HTTP; then the rest is empty.
	tcp    bool
	method string
	path   string // as it is sent
	// seen is what applications make of the path, written by hand. It is empty
	// where a proxy that reads it refuses to.
	seen    string
	host    string
	headers [][2]string
}

func (r request) String() string {
	if r.tcp {
		return "connect"
	}
	out := r.method + " " + r.path + " host=" + r.host
	for _, h := range r.headers {
		out += " " + h[0] + ": " + h[1]
	}
	return out
}

// header returns the value of a header as a proxy compares it, and whether it was
// sent.
func (r request) header(name string) (string, bool) {
	if strings.EqualFold(name, "host") {
		return r.host, true
	}
	var values []string
	for _, h := range r.headers {
		if strings.EqualFold(h[0], name) {
			values = append(values, h[1])
		}
	}
	return strings.Join(values, ","), len(values) > 0
}

// requests are what each caller asks of each port. They are chosen so that the
// rules of random meshes tell them apart.
func requests() []request {
	get := func(path, seen string, headers ...[2]string) request {
		return request{method: http.MethodGet, path: path, seen: seen, host: "shop.test", headers: headers}
	}
	other := func(method string, r request) request {
		r.method = method
		return r
	}
	as := func(host string, r request) request {
		r.host = host
		return r
	}
	key := func(value string) [2]string { return [2]string{"x-key", value} }
	return []request{
		{tcp: true},
		get("/ok", "/ok"),
		get("/ok/7", "/ok/7"),
		get("/admin", "/admin"),
		get("/ok/../admin", "/admin"),
		get("/ok/%2e%2e/admin", "/admin"),
		get("//ok", "/ok"),
		get("/%6Fk", "/ok"),
		get("/ok%2F7", ""),
		get("/ok?x=/admin", "/ok"),
		get("/OK", "/OK"),
		get("/", "/"),
		get("/ok", "/ok", key("1")),
		get("/admin", "/admin", key("1"), key("2")),
		other(http.MethodPost, get("/ok", "/ok")),
		other(http.MethodPost, get("/admin", "/admin", key("2"))),
		other(http.MethodDelete, get("/ok/7", "/ok/7")),
		as("shop", get("/ok", "/ok")),
		as("shop:80", get("/ok", "/ok", key("1"))),
	}
}
