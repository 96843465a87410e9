package identity

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

func jwt(payload string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256"}`)) + "." + encode([]byte(payload)) + "." + encode([]byte("signature"))
}

func TestCheckToken(t *testing.T) {
	now := time.Unix(1000, 0)
	cases := map[string]struct {
		reason string
		token  string
		why    string
	}{
		"Good":           {reason: "A token for this mesh that has not ended goes on to the API server.", token: jwt(`{"aud":["outrigger"],"exp":1001}`)},
		"OneAudience":    {reason: "The audience may be a string.", token: jwt(`{"aud":"outrigger","exp":1001}`)},
		"MoreAudiences":  {reason: "A token may be for others too.", token: jwt(`{"aud":["api","outrigger"],"exp":1001}`)},
		"FarExpiry":      {reason: "A number beyond any time is still a number.", token: jwt(`{"aud":"outrigger","exp":1e300}`)},
		"OtherAudience":  {reason: "The default token of a pod is for the API server.", token: jwt(`{"aud":["https://kubernetes.default.svc"],"exp":1001}`), why: ReasonTokenAudience},
		"OtherMesh":      {reason: "Part of a name is another name.", token: jwt(`{"aud":["outrigger-2"],"exp":1001}`), why: ReasonTokenAudience},
		"NoAudience":     {reason: "Old tokens from Secrets have none.", token: jwt(`{"exp":1001}`), why: ReasonTokenAudience},
		"Expired":        {reason: "A token that has ended.", token: jwt(`{"aud":"outrigger","exp":1000}`), why: ReasonTokenExpired},
		"NoExpiry":       {reason: "Old tokens from Secrets never end.", token: jwt(`{"aud":"outrigger"}`), why: ReasonTokenExpired},
		"Empty":          {reason: "Nothing.", why: ReasonTokenMalformed},
		"TwoParts":       {reason: "Not a web token.", token: "a.b", why: ReasonTokenMalformed},
		"NotBase64":      {reason: "Not a web token.", token: "a.!.c", why: ReasonTokenMalformed},
		"NotJSON":        {reason: "Not a web token.", token: jwt(`{`), why: ReasonTokenMalformed},
		"NumberAudience": {reason: "Not an audience.", token: jwt(`{"aud":7,"exp":1001}`), why: ReasonTokenMalformed},
		"Long":           {reason: "No token is that long.", token: strings.Repeat("a", maxToken+1), why: ReasonTokenMalformed},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			err := checkToken(tc.token, "outrigger", now)
			if tc.why == "" {
				if err != nil {
					t.Errorf("%s\nunexpected error: %v", tc.reason, err)
				}
				return
			}
			wantRefusal(t, tc.reason, err, codes.Unauthenticated, tc.why)
			if len(tc.token) > 10 && strings.Contains(err.Error(), tc.token) {
				t.Errorf("%s\nthe error holds the token", tc.reason)
			}
		})
	}
}

func FuzzCheckToken(f *testing.F) {
	f.Add(jwt(`{"aud":["outrigger"],"exp":1001}`))
	f.Add(jwt(`{"aud":"outrigger","exp":-1}`))
	f.Add("a.b.c")
	f.Fuzz(func(_ *testing.T, token string) {
		_ = checkToken(token, "outrigger", time.Unix(1000, 0))
	})
}
