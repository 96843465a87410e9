package why

import (
	"errors"
	"fmt"
	"strings"
)

// errEscaped is what Envoy answers with status 400.
var errEscaped = errors.New("the path has an escaped slash, backslash or zero byte, which proxies refuse with status 400")

// normalise returns a path, without its query, as an Envoy of the mesh compares it
// and hands it on: dot segments are taken out, then slashes merged, letters and
// digits unescaped and what does not belong in a URL escaped.
func normalise(path string) (string, error) {
	lower := strings.ToLower(path)
	for _, refused := range []string{"%2f", "%5c", "%00"} {
		if strings.Contains(lower, refused) {
			return "", errEscaped
		}
	}
	path = strings.ReplaceAll(path, `\`, "/")
	var kept []string
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, s := range segments {
		up, dots := dotSegment(s)
		if !dots {
			kept = append(kept, escape(s))
			continue
		}
		if up && len(kept) > 0 {
			kept = kept[:len(kept)-1]
		}
		if i == len(segments)-1 {
			kept = append(kept, "")
		}
	}
	out := "/" + strings.Join(kept, "/")
	for strings.Contains(out, "//") {
		out = strings.ReplaceAll(out, "//", "/")
	}
	return out, nil
}

// dotSegment reports whether s stands for a folder itself or the one above. A
// parameter after plain dots counts for nothing, one after escaped dots does.
func dotSegment(s string) (up, dots bool) {
	bare, _, _ := strings.Cut(s, ";")
	for _, s := range []string{bare, strings.ReplaceAll(strings.ToLower(s), "%2e", ".")} {
		if s == "." || s == ".." {
			return s == "..", true
		}
	}
	return false, false
}

// escape writes a segment as Envoy does.
func escape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]) {
			if plain := unhex(s[i+1])<<4 | unhex(s[i+2]); unreserved(plain) {
				out.WriteByte(plain)
			} else {
				out.WriteString(s[i : i+3])
			}
			i += 2
			continue
		}
		if strings.IndexByte("\"<>^`{|}", c) >= 0 || c <= ' ' || c > '~' {
			fmt.Fprintf(&out, "%%%02X", c)
			continue
		}
		out.WriteByte(c)
	}
	return out.String()
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	default:
		return c - 'a' + 10
	}
}
