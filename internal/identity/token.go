package identity

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// maxToken bounds a token before it is parsed; one of the API server has about
// 1 kB.
const maxToken = 8 << 10

// audiences is the claim "aud": a string or a list of them.
type audiences []string

// UnmarshalJSON takes both forms.
func (a *audiences) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(a))
}

// checkToken refuses tokens that the API server would certainly refuse, without
// asking it. What it says about the rest is worth nothing: the signature is not
// verified. It is given untrusted input.
func checkToken(token, audience string, now time.Time) error {
	refuse := func(reason, message string) error {
		return &signing.Refusal{Code: codes.Unauthenticated, Reason: reason, Err: errors.New(message)}
	}
	if len(token) > maxToken {
		return refuse(ReasonTokenMalformed, "the token is too long")
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return refuse(ReasonTokenMalformed, "the token is not a JSON web token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return refuse(ReasonTokenMalformed, "the token's payload is not base64")
	}
	var claims struct {
		Audience audiences `json:"aud"`
		Expiry   float64   `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return refuse(ReasonTokenMalformed, "the token's payload is not a JSON object with aud and exp")
	}
	if !slices.Contains(claims.Audience, audience) {
		return refuse(ReasonTokenAudience, "the token is not for this mesh: its audience must be "+audience)
	}
	// A number outside of time's range is compared as the number that it is.
	if claims.Expiry <= float64(now.Unix()) {
		return refuse(ReasonTokenExpired, "the token has expired")
	}
	return nil
}
