package vault

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const token = "hvs.A-TOKEN-THAT-NOBODY-MAY-SEE"

// client asks a server that answers as it likes, as a Vault or whatever is in its
// place may. What a real one answers is tested where it is used.
func client(t *testing.T, answer http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewTLSServer(answer)
	t.Cleanup(server.Close)
	c, err := New(Config{Address: server.URL, CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func says(status int, words ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": words})
	}
}

func TestErrorsHaveVaultsWordsAndNoSecret(t *testing.T) {
	cases := map[string]struct {
		reason string
		answer http.HandlerFunc
		want   string
	}{
		"words":          {answer: says(403, "permission denied", "invalid token"), want: "POST auth/token/renew-self: Vault answered 403: permission denied; invalid token"},
		"token repeated": {reason: "words may quote the request", answer: says(400, "bad token "+token), want: "bad token (removed)"},
		"lines":          {reason: "a log has one line for it", answer: says(400, "1 error occurred:\n\t* common name\r\n\x1b[31mred"), want: "1 error occurred: * common name [31mred"},
		"long":           {reason: "a log is not flooded", answer: says(400, strings.Repeat("x", 10_000)), want: strings.Repeat("x", maxWords) + "…"},
		"not Vault": {
			reason: "what stands in front of Vault may answer with a page that repeats headers",
			answer: func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(404)
				_, _ = w.Write([]byte("<html>" + r.Header.Get("X-Vault-Token")))
			}, want: "Vault answered 404",
		},
		"success that is none": {
			answer: func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(r.Header.Get("X-Vault-Token"))) },
			want:   "not what its API promises",
		},
		"no token": {answer: says(200), want: "holds no token"},
		"to plain text": {
			reason: "a standby's answer must not have the token sent where the network reads it",
			answer: func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://127.0.0.1:1/v1/x", http.StatusTemporaryRedirect)
			},
			want: "Vault answered 307",
		},
		"in circles": {
			answer: func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			},
			want: "Vault answered 307",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := client(t, tc.answer).Renew(t.Context(), token)
			if err == nil || !strings.HasSuffix(err.Error(), tc.want) {
				t.Errorf("%s: got error %v; want %q at its end", tc.reason, err, tc.want)
			}
			if strings.Contains(err.Error(), token) {
				t.Errorf("%s: the token is in the error", tc.reason)
			}
		})
	}
	t.Run("service account token", func(t *testing.T) {
		const own = "eyJhbGciOi.A-SERVICE-ACCOUNT-TOKEN.c2ln"
		_, err := client(t, says(400, "cannot parse "+own)).Login(t.Context(), "kubernetes", "r", own)
		if err == nil || strings.Contains(err.Error(), own) || !strings.Contains(err.Error(), "cannot parse (removed)") {
			t.Errorf("got error %v; want Vault's words without the token", err)
		}
	})
}

func TestRedirectFromStandby(t *testing.T) {
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/active/v1/auth/token/renew-self" {
			http.Redirect(w, r, "/active"+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		if r.Method != http.MethodPost || r.Header.Get("X-Vault-Token") != token {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte(`{"auth":{"client_token":"` + token + `","lease_duration":90,"renewable":true}}`))
	})
	got, err := c.Renew(t.Context(), token)
	if err != nil || got.TTL != 90*time.Second || !got.Renewable {
		t.Errorf("got %s %t, error %v; want the active server's answer", got.TTL, got.Renewable, err)
	}
}

func TestTriedAgainWhereThatMayHelp(t *testing.T) {
	cases := map[string]struct {
		status int
		header http.Header
		calls  int32
	}{
		"sealed":        {status: 503, calls: attempts},
		"broken":        {status: 500, calls: attempts},
		"behind":        {status: 412, calls: attempts},
		"busy":          {status: 429, calls: attempts},
		"busy for long": {status: 429, header: http.Header{"Retry-After": {"3600"}}, calls: 1},
		"denied":        {status: 403, calls: 1},
		"wrong":         {status: 400, calls: 1},
		"not there":     {status: 404, calls: 1},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			c := client(t, func(w http.ResponseWriter, _ *http.Request) {
				calls.Add(1)
				for key, values := range tc.header {
					w.Header()[key] = values
				}
				w.WriteHeader(tc.status)
			})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := c.LookUp(ctx, token)
			if answer, ok := errors.AsType[*Error](err); !ok || answer.Status != tc.status || answer.RetryAfter > maxRetryAfter {
				t.Errorf("got error %v; want status %d", err, tc.status)
			}
			if calls.Load() != tc.calls {
				t.Errorf("asked %d times; want %d", calls.Load(), tc.calls)
			}
		})
	}
}

func TestRecoversMeanwhile(t *testing.T) {
	var calls atomic.Int32
	c := client(t, func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte(`{"data":{"ttl":60,"renewable":false}}`))
	})
	got, err := c.LookUp(t.Context(), token)
	if err != nil || got.TTL != time.Minute {
		t.Errorf("got %s, error %v; want a minute", got.TTL, err)
	}
}

func TestWhatIsSentToSign(t *testing.T) {
	var got map[string]any
	var namespaces []string
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		namespaces = r.Header.Values("X-Vault-Namespace")
		_ = json.NewDecoder(r.Body).Decode(&got)
		_, _ = w.Write([]byte(`{"data":{"certificate":"C","issuing_ca":"I"},"warnings":["a\nb"]}`))
	})
	signed, err := c.Sign(t.Context(), token, "pki", "mesh", SignRequest{
		CSR: "R", SerialNumber: "uid", DNSNames: []string{"a.b.c"}, URIs: []string{"spiffe://c/x"}, TTL: 59*time.Minute + 59*time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"csr": "R", "serial_number": "uid", "alt_names": "a.b.c", "uri_sans": "spiffe://c/x", "ttl": "3599s"} {
		if got[key] != want {
			t.Errorf("%s is %v; want %s", key, got[key], want)
		}
	}
	if len(namespaces) != 0 {
		t.Errorf("sent to namespace %q; want none", namespaces)
	}
	if len(signed.Chain) != 1 || signed.Chain[0] != "I" || signed.Warnings[0] != "a b" {
		t.Errorf("got %+v; want the issuer as chain, and the warning on one line", signed)
	}
}

func TestAddress(t *testing.T) {
	for _, address := range []string{"", "vault:8200", "http://vault:8200", "https://"} {
		if _, err := New(Config{Address: address}); err == nil || !strings.Contains(err.Error(), "https://HOST:PORT") {
			t.Errorf("%q: got error %v; want what is allowed", address, err)
		}
	}
	if _, err := New(Config{Address: "https://vault", CA: []byte("x")}); err == nil {
		t.Error("a CA that is none was taken")
	}
}
