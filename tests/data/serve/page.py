"""The chat page in a browser: the model is named, an answer streams in, its figures are shown, Stop stops.

usage: page.py http://HOST:PORT SCREENSHOT.png
"""

import sys

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

address, screenshot = sys.argv[1:]
options = webdriver.ChromeOptions()
for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-quic",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=900,640"):
    options.add_argument(flag)
options.binary_location = "/usr/bin/chromium"
options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
try:
    driver.get(address)
    wait = WebDriverWait(driver, 120)

    def find(selector):
        return driver.find_element(By.CSS_SELECTOR, selector)

    def say(words):
        find("#words").send_keys(words, Keys.ENTER)

    def answered(count):
        wait.until(lambda _: len(driver.find_elements(By.CSS_SELECTOR, ".figures")) == count)
        return driver.find_elements(By.CSS_SELECTOR, ".assistant")[-1].text

    wait.until(lambda _: find("#light").get_attribute("class") == "ready")
    assert find("#model").text == "local-trt-llm" and "CPU reference" in find("#about").text
    say("What is the capital of France?")
    first = answered(1)
    assert "Paris" in first and "tok/s" in first and "first token after" in first, first
    say("And of Italy?")
    second = answered(2)
    assert "cached" in second, second
    driver.save_screenshot(screenshot)
    say("Tell a very long story of a robot.")
    wait.until(lambda _: len(driver.find_elements(By.CSS_SELECTOR, ".assistant")[-1].text) > 20)
    assert find("#send").text == "Stop"
    find("#send").click()
    assert "stopped" in answered(3)
    find("#fresh").click()
    assert not driver.find_elements(By.CSS_SELECTOR, ".turn")
    complaints = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not complaints, complaints
finally:
    driver.quit()
print("ok page")
