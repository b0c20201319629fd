import static java.nio.charset.StandardCharsets.UTF_8;

import com.nimbusds.jose.JWSObject;
import com.nimbusds.jose.Payload;
import com.nimbusds.jose.crypto.ECDSAVerifier;
import com.nimbusds.jose.util.*;
import com.nimbusds.jose.util.Base64;
import java.nio.ByteBuffer;
import java.security.cert.*;
import java.security.interfaces.ECPublicKey;
import java.util.*;

/** Verifies JWS-Signature with nimbus-jose-jwt and the JDK; the steps are those of ../README.md. */
record Verifier(Map<String, Set<TrustAnchor>> anchors, long now, Set<String> seen) {
    /** Returns the SPIFFE ID of who said the body to the audience in those surroundings. */
    String verify(Received r) throws Refused {
        int step = 0;
        try {
            String[] parts = r.jws().split("\\.", -1);
            need(r.jws().length() <= 8192 && parts.length == 3 && parts[1].isEmpty());
            step = 1;
            for (String part : parts) need(Base64URL.encode(new Base64URL(part).decode()).toString().equals(part));
            String text = UTF_8.newDecoder().decode(ByteBuffer.wrap(new Base64URL(parts[0]).decode())).toString();
            Map<String, Object> header = JSONObjectUtils.parse(text);
            need(quotes(JSONObjectUtils.toJSONString(header)) == quotes(text)); // else a member stood there twice
            step = 2;
            need(r.typ().equals(header.get("typ")) && r.algorithms().contains(header.get("alg")));
            need(List.of("a2a").equals(header.get("crit")) && header.containsKey("a2a"));
            need(Collections.disjoint(header.keySet(), Set.of("b64", "jku", "jwk", "x5u")));
            step = 3;
            X509Certificate leaf = leaf((List<?>) header.get("x5c"), r.usage());
            need(X509CertUtils.computeSHA256Thumbprint(leaf).toString().equals(header.get("x5t#S256")));
            step = 5; // and (4)
            var verifier = new ECDSAVerifier((ECPublicKey) leaf.getPublicKey(), Set.of("a2a"));
            need(JWSObject.parse(r.jws(), new Payload(r.body())).verify(verifier));
            step = 6;
            Map<?, ?> a2a = (Map<?, ?>) header.get("a2a"), bound = new HashMap<>(a2a);
            String id = uris(leaf), aud = (String) a2a.get("aud"), jti = (String) a2a.get("jti");
            long iat = (Long) a2a.get("iat"), exp = (Long) a2a.get("exp");
            need(a2a.get("v").equals(1L) && id.equals(a2a.get("iss")) && jti.matches("[A-Za-z0-9_-]{22,128}"));
            bound.keySet().removeAll(Set.of("v", "iss", "aud", "iat", "exp", "jti"));
            need(aud != null && r.members().containsAll(bound.keySet()));
            step = 7;
            need(aud.equals(r.audience()) && Objects.equals(r.cty(), header.get("cty")) && bound.equals(r.bound()));
            step = 8;
            need(iat < exp && exp - iat <= 300 && iat <= now + 10 && now < exp);
            step = 9;
            boolean first = seen.add(id + " " + aud + " " + jti); // until `exp`, for every process that receives
            need((r.from() == null || r.from().equals(id)) && (first || !r.isRequest()));
            return id;
        } catch (Exception error) { // also for a member of another type than it must be
            throw new Refused(step, error);
        }
    }

    private X509Certificate leaf(List<?> x5c, String usage) throws Exception {
        List<X509Certificate> chain = new ArrayList<>();
        for (Object entry : x5c) {
            chain.add(X509CertUtils.parseWithException(new Base64((String) entry).decode()));
            need(Base64.encode(chain.get(chain.size() - 1).getEncoded()).toString().equals(entry) && chain.size() <= 8);
        }
        X509Certificate leaf = chain.get(0);
        need(uris(leaf).matches("spiffe://[a-z0-9._-]{1,255}(/(?!\\.{1,2}(/|$))[A-Za-z0-9._-]+)+"));
        need(leaf.getBasicConstraints() == -1 && leaf.getExtendedKeyUsage().contains(usage));
        need(leaf.getKeyUsage()[0] && !leaf.getKeyUsage()[5] && !leaf.getKeyUsage()[6]); // signs, and is no CA's
        PKIXParameters parameters = new PKIXParameters(anchors.get(uris(leaf).split("/")[2])); // of its own domain alone
        parameters.setRevocationEnabled(false);
        parameters.setDate(new Date(now * 1000));
        CertPath path = CertificateFactory.getInstance("X.509").generateCertPath(chain);
        CertPathValidator.getInstance("PKIX").validate(path, parameters);
        return leaf;
    }

    /** The URIs of a certificate; several are no SPIFFE ID, for no space is in one. */
    private static String uris(X509Certificate leaf) throws CertificateParsingException {
        var uris = leaf.getSubjectAlternativeNames().stream().filter(name -> name.get(0).equals(6));
        return String.join(" ", uris.map(name -> (String) name.get(1)).toList());
    }

    private static long quotes(String json) {
        return json.replaceAll("\\\\.", "").chars().filter(character -> character == '"').count();
    }

    private static void need(boolean ok) {
        if (!ok) throw new IllegalArgumentException();
    }
}
