package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// maxRequest bounds a certificate request before it is parsed.
const maxRequest = 4 << 10

// Tags of the kinds of names in a subject alternative name.
const (
	tagDNSName = 2
	tagURI     = 6
)

var (
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
)

// parseRequest parses a certificate request and checks all that does not depend
// on who asks. It is given untrusted input.
func parseRequest(der []byte) (*x509.CertificateRequest, error) {
	malformed := func(err error) error {
		return &signing.Refusal{Code: codes.InvalidArgument, Reason: ReasonRequest, Err: err}
	}
	if len(der) > maxRequest {
		return nil, malformed(fmt.Errorf("the certificate request has %d bytes; at most %d are allowed", len(der), maxRequest))
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, malformed(fmt.Errorf("parse the certificate request: %w", err))
	}
	key, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, &signing.Refusal{Code: codes.InvalidArgument, Reason: ReasonKey, Err: errors.New("the key is not ECDSA P-256")}
	}
	if err := request.CheckSignature(); err != nil {
		return nil, malformed(fmt.Errorf("check the request's signature: %w", err))
	}
	if err := onlyExtensions(request); err != nil {
		return nil, malformed(err)
	}
	return request, nil
}

// onlyExtensions checks that a request has no attribute, such as a password, but
// the one that lists extensions. Some issuers act on attributes.
func onlyExtensions(request *x509.CertificateRequest) error {
	var body struct {
		Raw        asn1.RawContent
		Version    int
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0"`
	}
	if rest, err := asn1.Unmarshal(request.RawTBSCertificateRequest, &body); err != nil || len(rest) > 0 {
		return errors.New("the certificate request is not well-formed")
	}
	for i, attribute := range body.Attributes {
		var kind asn1.ObjectIdentifier
		if _, err := asn1.Unmarshal(attribute.Bytes, &kind); err != nil || i > 0 || !kind.Equal(oidExtensionRequest) {
			return errors.New("the certificate request has an attribute besides its extensions")
		}
	}
	return nil
}

// checkRequest checks that a request asks for exactly what the template says.
// External issuers sign a request as it is, so nothing is overlooked or mended.
func checkRequest(request *x509.CertificateRequest, t Template) error {
	refuse := func(err error) error {
		return &signing.Refusal{Code: codes.PermissionDenied, Reason: ReasonNames, Err: err}
	}
	subject, err := asn1.Marshal(pkix.Name{SerialNumber: t.PodUID}.ToRDNSequence())
	if err != nil {
		return refuse(fmt.Errorf("encode the subject: %w", err))
	}
	if !slices.Equal(request.RawSubject, subject) {
		return refuse(fmt.Errorf("the request's subject is %q; it must be the serial number %q and nothing else", request.Subject, t.PodUID))
	}
	if len(request.Extensions) != 1 {
		return refuse(fmt.Errorf("the request has %d extensions; exactly one, subject alternative name, is allowed", len(request.Extensions)))
	}
	if err := checkExtension(request.Extensions, t); err != nil {
		return refuse(err)
	}
	return nil
}

// checkExtension checks that there is one subject alternative name, and that it
// holds exactly the template's names.
func checkExtension(extensions []pkix.Extension, t Template) error {
	var got []string
	found := 0
	for _, e := range extensions {
		if !e.Id.Equal(oidSubjectAltName) {
			continue
		}
		found++
		names, err := altNames(e.Value)
		if err != nil {
			return err
		}
		got = names
	}
	var want []string
	for _, name := range t.DNSNames {
		want = append(want, "DNS:"+name)
	}
	for _, uri := range t.URIs {
		want = append(want, "URI:"+uri.String())
	}
	slices.Sort(got)
	slices.Sort(want)
	if found != 1 || !slices.Equal(got, want) {
		return fmt.Errorf("the names are [%s]; they must be exactly [%s]", strings.Join(got, " "), strings.Join(want, " "))
	}
	return nil
}

// altNames decodes a subject alternative name without leaving anything out, as
// crypto/x509 does with kinds that it does not know.
func altNames(der []byte) ([]string, error) {
	var values []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &values); err != nil || len(rest) > 0 {
		return nil, errors.New("the subject alternative name is not well-formed")
	}
	var names []string
	for _, v := range values {
		switch {
		case v.Class == asn1.ClassContextSpecific && !v.IsCompound && v.Tag == tagDNSName:
			names = append(names, "DNS:"+string(v.Bytes))
		case v.Class == asn1.ClassContextSpecific && !v.IsCompound && v.Tag == tagURI:
			names = append(names, "URI:"+string(v.Bytes))
		default:
			names = append(names, fmt.Sprintf("[%d]", v.Tag))
		}
	}
	return names, nil
}
