package xds

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

const (
	tlsSocket = "envoy.transport_sockets.tls"
	rawSocket = "envoy.transport_sockets.raw_buffer"
)

// serverName is the SNI of calls to a service port. It tells mesh traffic from an
// application's own TLS.
func serverName(n mesh.PortName) string {
	return fmt.Sprintf("%d.%s.%s%s", n.Port, n.Name, n.Namespace, serverNameSuffix)
}

const serverNameSuffix = ".outrigger"

// nobody is accepted where no identity is. Envoy reads an empty list of names as
// every name, so the list is never empty. No certificate has this one, because
// the mesh signs only names of its trust domain.
const nobody = "outrigger:nobody"

// mutualTLS is what both ends of the mesh have: TLS 1.3, the pod's certificate,
// and the peer's validation. It lists no ALPN: a server that lists one makes Envoy
// take HTTP/2 for HTTP/1, and a client's pool offers its own.
func mutualTLS() *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{
			Name: bootstrap.CertificateName,
			SdsConfig: &corev3.ConfigSource{
				ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{PathConfigSource: &corev3.PathConfigSource{
					Path:             bootstrap.CertificateFile,
					WatchedDirectory: &corev3.WatchedDirectory{Path: path.Dir(bootstrap.CertificateFile)},
				}},
				ResourceApiVersion: corev3.ApiVersion_V3,
			},
		}},
	}
}

// clientTLS is the socket to servers of a service port that may present one of
// the names.
func (e *encoder) clientTLS(b *mesh.Bundle) *corev3.TransportSocket {
	c := mutualTLS()
	c.ValidationContextType = trusting(exactNames(domains(b.TrustDomain, b.AlsoTrusted), b.Identities))
	return e.transportSocket(tlsSocket, &tlsv3.UpstreamTlsContext{
		CommonTlsContext: c,
		Sni:              serverName(b.Name),
		MaxSessionKeys:   wrapperspb.UInt32(0), // servers resume nothing
	})
}

// serverTLS is the socket that lets in whom the validation accepts, and nobody
// else.
func (e *encoder) serverTLS(c *tlsv3.CommonTlsContext) *corev3.TransportSocket {
	return e.transportSocket(tlsSocket, &tlsv3.DownstreamTlsContext{
		CommonTlsContext:         c,
		RequireClientCertificate: wrapperspb.Bool(true),
		// A resumed session would not be asked again who may connect.
		SessionTicketKeysType:            &tlsv3.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true},
		DisableStatefulSessionResumption: true,
	})
}

// domains are the trust domains in which names are accepted.
func domains(first string, also []string) []string {
	return append([]string{first}, also...)
}

// anyName is every identity of the trust domains.
func anyName(domains []string) []*tlsv3.SubjectAltNameMatcher {
	return uriNames(names(domains, nil, []mesh.Group{mesh.Everyone}))
}

// onlyBySecret lets in those that a secret names, which can change without a new
// listener.
func onlyBySecret(name string) *tlsv3.CommonTlsContext {
	c := mutualTLS()
	c.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
		ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: name, SdsConfig: ads()},
	}
	return c
}

// trusting joins names that a peer may have with the roots of the mesh, which
// come as a secret of their own, because they change at another time.
func trusting(names []*tlsv3.SubjectAltNameMatcher) *tlsv3.CommonTlsContext_CombinedValidationContext {
	return &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: names},
			ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: trustName, SdsConfig: ads()},
		},
	}
}

// exactNames are the certificates of the identities, or of nobody.
func exactNames(domains []string, identities []mesh.Identity) []*tlsv3.SubjectAltNameMatcher {
	return uriNames(names(domains, identities, nil))
}

// names are the SPIFFE IDs of the identities and of the groups' identities, in each
// of the trust domains. There are none for nobody.
func names(domains []string, identities []mesh.Identity, groups []mesh.Group) []*matcherv3.StringMatcher {
	var out []*matcherv3.StringMatcher
	for _, domain := range domains {
		for _, id := range identities {
			out = append(out, exact(id.URI(domain)))
		}
		for _, g := range groups {
			out = append(out, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: g.URIPrefix(domain)}})
		}
	}
	return out
}

// uriNames accepts certificates with one of the names, or none.
func uriNames(names []*matcherv3.StringMatcher) []*tlsv3.SubjectAltNameMatcher {
	if len(names) == 0 {
		names = []*matcherv3.StringMatcher{exact(nobody)}
	}
	out := make([]*tlsv3.SubjectAltNameMatcher, len(names))
	for i, name := range names {
		out[i] = &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: name}
	}
	return out
}

func exact(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

// trust writes the secret with the roots of the mesh.
func (e *encoder) trust(t *mesh.Trust) {
	e.part.Name = trustName
	e.validation(trustName, t, nil)
}

// validation writes a secret that accepts certificates of the mesh with one of
// the names; with no names it must be joined with some.
func (e *encoder) validation(name string, t *mesh.Trust, names []*tlsv3.SubjectAltNameMatcher) {
	context := &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: names}
	if len(t.Also) == 0 {
		if err := checkBundle(t.Bundle); err != nil {
			e.faults = append(e.faults, fmt.Errorf("trust bundle: %w", err))
		}
		context.TrustedCa = inline(t.Bundle)
	} else {
		context.CustomValidatorConfig = &corev3.TypedExtensionConfig{Name: spiffeValidator, TypedConfig: e.any(e.spiffe(t))}
	}
	e.add(Secret, name, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: context}})
}

const spiffeValidator = "envoy.tls.cert_validator.spiffe"

// spiffe verifies each peer against the roots of the trust domain that its SPIFFE
// ID names. Were they one bundle, each root could make names of every domain.
// Nobody of a domain without roots is trusted, for the validator does not hear of
// it.
func (e *encoder) spiffe(t *mesh.Trust) *tlsv3.SPIFFECertValidatorConfig {
	c := &tlsv3.SPIFFECertValidatorConfig{}
	for _, d := range t.Domains() {
		if d.Bundle == "" {
			continue
		}
		if err := checkBundle(d.Bundle); err != nil {
			e.faults = append(e.faults, fmt.Errorf("trust bundle of %s: %w", d.Name, err))
		}
		c.TrustDomains = append(c.TrustDomains, &tlsv3.SPIFFECertValidatorConfig_TrustDomain{Name: d.Name, TrustBundle: inline(d.Bundle)})
	}
	if len(c.TrustDomains) == 0 {
		e.faults = append(e.faults, errors.New("trust bundle: no trust domain has one; at least one root is needed"))
	}
	return c
}

// checkBundle refuses what Envoy would: it has no way to trust nobody, so an
// empty bundle is a fault, and the proxy keeps what it had.
func checkBundle(bundle string) error {
	rest, n := []byte(bundle), 0
	for ; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("certificate %d: %w", n+1, err)
		}
	}
	if n == 0 {
		return errors.New("no PEM certificate; at least one root is needed")
	}
	return nil
}
