package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// A SignRequest is what a PKI engine is asked to sign. What it names counts where
// the role does not take names from the request itself.
type SignRequest struct {
	// CSR is PEM.
	CSR string
	// SerialNumber is that of the subject; empty for none.
	SerialNumber string
	DNSNames     []string
	URIs         []string
	// TTL is rounded down to seconds.
	TTL time.Duration
}

// A Signed is a PKI engine's answer, PEM.
type Signed struct {
	Certificate string
	// Chain is of what signed it: each certificate is followed by its issuer.
	Chain []string
	// Warnings are Vault's words about what it changed.
	Warnings []string
}

// Sign has a role of the PKI engine at mount sign a request.
func (c *Client) Sign(ctx context.Context, token, mount, role string, r SignRequest) (Signed, error) {
	var answer struct {
		Data struct {
			Certificate string   `json:"certificate"`
			Chain       []string `json:"ca_chain"`
			Issuer      string   `json:"issuing_ca"`
		} `json:"data"`
		Warnings []string `json:"warnings"`
	}
	body := map[string]any{
		"csr": r.CSR, "alt_names": strings.Join(r.DNSNames, ","), "uri_sans": strings.Join(r.URIs, ","),
		"ttl": fmt.Sprintf("%ds", int64(r.TTL/time.Second)), "format": "pem",
	}
	if r.SerialNumber != "" {
		body["serial_number"] = r.SerialNumber
	}
	sign := call{method: http.MethodPost, path: mount + "/sign/" + role, token: token, body: body}
	if err := c.do(ctx, sign, &answer); err != nil {
		return Signed{}, err
	}
	signed := Signed{Certificate: answer.Data.Certificate, Chain: answer.Data.Chain}
	if len(signed.Chain) == 0 && answer.Data.Issuer != "" {
		signed.Chain = []string{answer.Data.Issuer}
	}
	for _, warning := range answer.Warnings {
		signed.Warnings = append(signed.Warnings, sign.clean(warning))
	}
	return signed, nil
}

// Chain returns the certificate of the issuer that the PKI engine at mount signs
// with, and those above it as far as the engine knows them; PEM. It needs no token.
func (c *Client) Chain(ctx context.Context, mount string) (string, error) {
	var answer struct {
		Data struct {
			Chain       string `json:"ca_chain"`
			Certificate string `json:"certificate"`
		} `json:"data"`
	}
	if err := c.do(ctx, call{method: http.MethodGet, path: mount + "/cert/ca_chain"}, &answer); err != nil {
		return "", err
	}
	if answer.Data.Chain != "" {
		return answer.Data.Chain, nil
	}
	return answer.Data.Certificate, nil
}

// A Token is what calls are made with, and how long it lasts.
type Token struct {
	Value string
	// TTL is what was left of it when Vault answered; zero for a token without end.
	TTL       time.Duration
	Renewable bool
}

// auth is how Vault speaks of a token that it has made or renewed.
type auth struct {
	Auth struct {
		Token     string `json:"client_token"`
		Seconds   int64  `json:"lease_duration"`
		Renewable bool   `json:"renewable"`
	} `json:"auth"`
}

func (a auth) token() (Token, error) {
	if a.Auth.Token == "" {
		return Token{}, errors.New("Vault's answer holds no token") //nolint:staticcheck // a name
	}
	return Token{Value: a.Auth.Token, TTL: time.Duration(a.Auth.Seconds) * time.Second, Renewable: a.Auth.Renewable}, nil
}

// Login gets a token for a service account's by the Kubernetes method at mount.
func (c *Client) Login(ctx context.Context, mount, role, serviceAccountToken string) (Token, error) {
	var answer auth
	login := call{
		method: http.MethodPost, path: "auth/" + mount + "/login",
		body: map[string]any{"role": role, "jwt": serviceAccountToken}, secret: serviceAccountToken,
	}
	if err := c.do(ctx, login, &answer); err != nil {
		return Token{}, err
	}
	return answer.token()
}

// Renew makes a token last longer.
func (c *Client) Renew(ctx context.Context, token string) (Token, error) {
	var answer auth
	if err := c.do(ctx, call{method: http.MethodPost, path: "auth/token/renew-self", token: token}, &answer); err != nil {
		return Token{}, err
	}
	return answer.token()
}

// LookUp returns how long a token lasts.
func (c *Client) LookUp(ctx context.Context, token string) (Token, error) {
	var answer struct {
		Data struct {
			Seconds   int64 `json:"ttl"`
			Renewable bool  `json:"renewable"`
		} `json:"data"`
	}
	if err := c.do(ctx, call{method: http.MethodGet, path: "auth/token/lookup-self", token: token}, &answer); err != nil {
		return Token{}, err
	}
	return Token{Value: token, TTL: time.Duration(answer.Data.Seconds) * time.Second, Renewable: answer.Data.Renewable}, nil
}
