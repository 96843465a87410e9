package vault

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	// maxWords bounds what is kept of Vault's words.
	maxWords = 500
	// maxRetryAfter bounds what Vault may ask to wait.
	maxRetryAfter = time.Minute
)

// refused makes an Error of an answer that is not a success.
func (c call) refused(response *http.Response, answer []byte) *Error {
	e := &Error{Method: c.method, Path: c.path, Status: response.StatusCode, RetryAfter: retryAfter(response.Header)}
	var said struct {
		Errors []string `json:"errors"`
	}
	// What is not Vault's form came from something between, and is not repeated.
	if err := json.Unmarshal(answer, &said); err != nil {
		return e
	}
	for _, words := range said.Errors {
		if words = c.clean(words); words != "" {
			e.Words = append(e.Words, words)
		}
	}
	return e
}

// clean makes Vault's words fit for a log: short, on one line, and without what
// was to stay secret.
func (c call) clean(words string) string {
	for _, secret := range []string{c.token, c.secret} {
		if secret != "" {
			words = strings.ReplaceAll(words, secret, "(removed)")
		}
	}
	words = strings.Join(strings.FieldsFunc(words, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(words) > maxWords {
		words = strings.ToValidUTF8(words[:maxWords], "") + "…"
	}
	return words
}

// retryAfter reads the header in seconds, which is the form that Vault writes.
func retryAfter(header http.Header) time.Duration {
	for _, name := range []string{"Retry-After", "X-Ratelimit-Reset"} {
		if seconds, err := strconv.Atoi(header.Get(name)); err == nil && seconds > 0 {
			return min(time.Duration(seconds)*time.Second, maxRetryAfter)
		}
	}
	return 0
}
